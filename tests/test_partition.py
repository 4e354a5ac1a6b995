"""Partitions are exact: compared with every possible cut, and with tables kept as files."""

import itertools
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpipe.errors import PartitionError
from jaxpipe.partition import LayerCost, Partition, partition

GOLDEN = Path(__file__).parent / "golden"


def layers_of(*parameters: int, output_bytes: tuple[int, ...] | None = None) -> list[LayerCost]:
    sizes = output_bytes or (1,) * len(parameters)
    return [
        LayerCost(f"layer_{i}", "Dense", n, 2 * n, size)
        for i, (n, size) in enumerate(zip(parameters, sizes, strict=True))
    ]


def gpt_layers() -> list[LayerCost]:
    embed = LayerCost("embed", "Embed", 1_081_344, 524_288, 262_144)
    blocks = [LayerCost(f"block_{i}", "Block", 789_760, 436_207_616, 262_144) for i in range(8)]
    return [embed, *blocks, LayerCost("head", "Head", 1_049_088, 538_968_064, 4_194_304)]


def brute_force(layers: list[LayerCost], num_stages: int) -> tuple[int, ...]:
    """The best of all cuts, by the preferences in their order."""

    def preference(boundaries: tuple[int, ...]) -> tuple:
        stages = [
            sum(layer.parameters for layer in layers[start:stop])
            for start, stop in itertools.pairwise(boundaries)
        ]
        sent = sum(layers[cut - 1].output_bytes for cut in boundaries[1:-1])
        counts = [stop - start for start, stop in itertools.pairwise(boundaries)]
        squares = [sum(n**2 for n in numbers) for numbers in (stages, counts)]
        return max(stages), sent, *squares, boundaries

    cuts = itertools.combinations(range(1, len(layers)), num_stages - 1)
    return min(((0, *inner, len(layers)) for inner in cuts), key=preference)


@given(
    costs=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), min_size=1, max_size=9),
    data=st.data(),
)
@settings(max_examples=400, deadline=None)
def test_finds_what_trying_every_cut_finds(costs, data):
    num_stages = data.draw(st.integers(1, len(costs)))
    parameters = [n for n, _ in costs]
    if not any(parameters):
        parameters = [1] * len(costs)
    layers = layers_of(*parameters, output_bytes=tuple(size for _, size in costs))
    assert partition(layers, num_stages, "parameters").boundaries == brute_force(layers, num_stages)


@given(
    weights=st.lists(st.integers(0, 10**15), min_size=1, max_size=60),
    num_stages=st.integers(1, 12),
    method=st.sampled_from(["uniform", "parameters", "flops", "type:dense"]),
)
@settings(deadline=None)
def test_stages_cover_the_layers_once_and_none_is_empty(weights, num_stages, method):
    num_stages = min(num_stages, len(weights))
    cut = partition(layers_of(*weights), num_stages, method)
    assert [i for s in range(num_stages) for i in cut.stage(s)] == list(range(len(weights)))
    assert all(len(cut.stage(s)) > 0 for s in range(num_stages))
    assert [cut.stage_of(i) for s in range(num_stages) for i in cut.stage(s)] == [
        s for s in range(num_stages) for _ in cut.stage(s)
    ]


def test_any_number_of_layers_is_cut_without_padding():
    assert partition(layers_of(1, 1, 1, 1, 1, 1, 1), 3, "uniform").boundaries == (0, 2, 4, 7)


def test_among_equal_stages_the_fewest_bytes_pass():
    layers = layers_of(4, 1, 1, 1, output_bytes=(9, 9, 2, 9))
    assert partition(layers, 2, "parameters").boundaries == (0, 1, 4)
    layers = layers_of(9, 1, 1, 1, output_bytes=(5, 9, 2, 9))
    assert partition(layers, 3, "parameters").boundaries == (0, 1, 3, 4)


def test_layers_that_weigh_nothing_are_cut_evenly():
    layers = layers_of(0, 0, 0, 0, 0, 0, output_bytes=(9, 9, 9, 9, 1, 9))
    assert partition(layers, 3, "parameters").boundaries == (0, 2, 4, 6)


def test_flops_and_types_are_balanced_by_name():
    layers = gpt_layers()
    assert partition(layers, 3, "flops").boundaries == (0, 4, 7, 10)
    assert partition(layers, 4, "type:BLO").boundaries == (0, 3, 5, 7, 10)
    assert partition(layers, 2, "type:^(embed|head)$").boundaries == (0, 5, 10)
    assert partition(layers, 4, "type:block").method == "type:block"


def test_a_list_of_boundaries_is_kept():
    cut = partition(gpt_layers(), 4, [0, 1, 2, 3, 10])
    assert cut == Partition((0, 1, 2, 3, 10), tuple(gpt_layers()), "explicit")
    assert cut.stage(3) == range(3, 10)
    assert cut.stage_of(9) == 3


@pytest.mark.parametrize(
    ("boundaries", "says"),
    [
        ([0, 4, 10], "3 of them, expected 5"),
        ([1, 2, 3, 4, 10], "the first is 1, expected 0"),
        ([0, 2, 3, 4, 9], "the last is 9, expected the number of layers, 10"),
        ([0, 2, 2, 4, 10], "stage 1 would be 2 to 2"),
        ([0, 5, 3, 4, 10], "stage 1 would be 5 to 3"),
        ([0, 2.5, 3, 4, 10], "not all of them are integers"),
    ],
)
def test_boundaries_that_do_not_fit_are_refused(boundaries, says):
    with pytest.raises(PartitionError) as error:
        partition(gpt_layers(), 4, boundaries)
    assert says in str(error.value)
    assert "5 increasing integers: 0 to 10" in str(error.value)


@pytest.mark.parametrize(
    ("num_stages", "method", "says"),
    [
        (11, "uniform", ["10 layers for 11 stages", "at most 10"]),
        (0, "uniform", ["num_stages=0", "at least 1"]),
        (2, "parameter", ["'parameter'", "did you mean 'parameters'?"]),
        (2, "type", ["'type'", "type:REGEX"]),
        (2, "type:conv", ["'type:conv'", "none of the 10 layers", "Block, Embed, Head"]),
        (2, "type:(", ["'type:('", "no regular expression"]),
    ],
)
def test_what_cannot_be_cut_is_refused(num_stages, method, says):
    with pytest.raises(PartitionError) as error:
        partition(gpt_layers(), num_stages, method)
    assert [part for part in says if part not in str(error.value)] == []


@pytest.mark.parametrize("index", [-1, 4])
def test_there_is_no_stage_outside_the_partition(index):
    with pytest.raises(PartitionError, match=f"no stage {index}: stages are 0 to 3"):
        partition(gpt_layers(), 4, "uniform").stage(index)


@pytest.mark.parametrize("layer", [-1, 10])
def test_there_is_no_layer_outside_the_partition(layer):
    with pytest.raises(PartitionError, match=f"no layer {layer}: layers are 0 to 9"):
        partition(gpt_layers(), 4, "uniform").stage_of(layer)


@pytest.mark.parametrize("weight", [lambda i: 1, lambda i: i**6 % 1009, lambda i: int(i == 250)])
def test_a_deep_model_is_cut_at_once(weight):
    layers = layers_of(*(weight(i) for i in range(500)))
    start = time.process_time()
    partition(layers, 64, "parameters")
    assert time.process_time() - start < 2


def convnet_layers() -> list[LayerCost]:
    types = ["Conv", "Conv", "Pool", "Conv", "Conv", "Pool", "Flatten", "Dense", "Dropout", "Dense"]
    return [
        LayerCost(f"{name.lower()}_{i}", name, 0, 900 * i, 1 << (20 - i))
        for i, name in enumerate(types)
    ]


@pytest.mark.parametrize(
    ("name", "layers", "num_stages", "method"),
    [
        ("gpt", gpt_layers(), 4, "parameters"),
        ("convnet", convnet_layers(), 2, [0, 7, 10]),
        ("one_stage", gpt_layers(), 1, "flops"),
    ],
)
def test_the_table_is_as_it_was(name, layers, num_stages, method):
    golden = (GOLDEN / f"partition_{name}.txt").read_text()
    assert str(partition(layers, num_stages, method)) + "\n" == golden
