"""What users get wrong: each mistake is told before anything is compiled, with what to do."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import Mesh
from zoo import WIDTH, Block, linen, mean_loss, tokens, vectors

import jaxpipe as jp
from jaxpipe import errors

KEY = jax.random.key(0)
EIGHT = vectors(8)
COMPILED = "/jax/core/compile/backend_compile_duration"


class Count:
    compilations = 0


@pytest.fixture(scope="module", autouse=True)
def counting() -> Iterator[None]:
    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        Count.compilations += event == COMPILED

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield
    jax.monitoring.clear_event_listeners()


def test_compilations_are_counted():
    before = Count.compilations
    jax.jit(lambda x: x + 12345)(np.float32(1))
    assert Count.compilations > before


def engine(
    model: jp.PipelineModule | None = None, mesh: Mesh | None = None, **settings: Any
) -> jp.Engine:
    settings = dict(num_microbatches=4) | settings
    return jp.initialize(model or linen(2), mesh=mesh or jp.make_mesh(pipe=2), **settings)


def gradients(model: jp.PipelineModule, **settings: Any) -> Any:
    made = engine(model, **settings)
    params = made.abstract_state(EIGHT).params
    return jax.eval_shape(made.value_and_grad, params, EIGHT, KEY)


def of(*layers: Any, loss: Any = mean_loss, **settings: Any) -> jp.PipelineModule:
    return jp.PipelineModule([*layers], loss, **settings)


def grid(*shape: int, names: tuple[str, ...]) -> Mesh:
    return Mesh(np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape), names)


def without(field: str) -> dict[str, Any]:
    return {name: x for name, x in EIGHT.items() if name != field}


def tokens_with(value: int, make: Callable[..., Any] = np.array) -> dict[str, Any]:
    batch = tokens(4)
    inputs = batch["inputs"].copy()
    inputs[1, 2] = value
    return batch | dict(inputs=make(inputs))


def of_tokens(**settings: Any) -> jp.Engine:
    model = of(
        jp.LayerSpec(nn.Embed, 16, WIDTH),
        jp.LayerSpec(nn.Dense, 16),
        loss=jp.losses.cross_entropy,
        id_ranges=dict(inputs=(0, 16), targets=(0, 16)),
    )
    return engine(model, num_microbatches=2, **settings)


DENSE = jp.LayerSpec(nn.Dense, 3)
SIDE = jp.LayerSpec(Block, batch_inputs=("segments",))
BRANCHES = jp.FunctionLayer(
    lambda w, x: lax.cond(x[0, 0] > 0, lambda w, x: x @ w, lambda w, x: x @ (2 * w), w, x),
    lambda key, x: jax.random.normal(key, (x.shape[-1], 3)),
    name="branches",
)
THREE_RANKS = jp.schedules.one_f_one_b(3, 4)


class Mistake(NamedTuple):
    error: type[errors.JaxpipeError]
    said: str
    make: Callable[[], Any]


MISTAKES = dict(
    # Meshes
    no_pipe_axis=Mistake(
        errors.MeshError,
        r"axes \('x', 'data'\); expected one named 'pipe'.*make_mesh",
        lambda: engine(mesh=grid(2, 1, names=("x", "data"))),
    ),
    unknown_axis=Mistake(
        errors.MeshError,
        r"\['expert'\] mean nothing here. Known: 'pipe', 'data', 'tensor'",
        lambda: engine(mesh=grid(2, 1, names=("pipe", "expert"))),
    ),
    too_many_devices=Mistake(
        errors.MeshError,
        "pipe=5 x data=2 x tensor=1 needs 10 devices; there are 8 .*jax_num_cpu_devices', 10",
        lambda: jp.make_mesh(pipe=5, data=2),
    ),
    empty_axis=Mistake(
        errors.MeshError, "axis 'data' has size 0; expected at least 1", lambda: jp.make_mesh(2, 0)
    ),
    # Schedules
    unknown_schedule=Mistake(
        errors.ScheduleError,
        "no schedule '1f1'; did you mean '1f1b'",
        lambda: engine(schedule="1f1"),
    ),
    no_num_microbatches=Mistake(
        errors.ScheduleError,
        "schedule='1f1b' needs num_microbatches=.* 2, keeps them busy",
        lambda: engine(num_microbatches=None),
    ),
    zero_microbatches=Mistake(
        errors.ScheduleError,
        "num_microbatches=0; expected at least 1",
        lambda: engine(num_microbatches=0),
    ),
    other_num_microbatches=Mistake(
        errors.ScheduleError,
        "num_microbatches=8, but the schedule '1f1b' is for 4",
        lambda: engine(mesh=jp.make_mesh(3), schedule=THREE_RANKS, num_microbatches=8),
    ),
    ranks_of_the_schedule=Mistake(
        errors.ScheduleError,
        "'1f1b' is for 3 ranks; the mesh's 'pipe' axis has 2. Make both equal",
        lambda: engine(schedule=THREE_RANKS),
    ),
    a_backward_that_cannot_be_split=Mistake(
        errors.LayerError,
        "branches: its backward .* in one `cond`, which cannot be cut into I and W",
        lambda: gradients(of(DENSE, BRANCHES), schedule="zb-h1"),
    ),
    chunks_that_a_schedule_cannot_have=Mistake(
        errors.ScheduleError,
        "num_chunks=2; expected 1: 'zb-h1' has 1 stage on each rank",
        lambda: engine(schedule="zb-h1", num_chunks=2),
    ),
    chunks_of_a_table=Mistake(
        errors.ScheduleError,
        "num_chunks=2, but the schedule '1f1b' has 1. Leave num_chunks out",
        lambda: engine(schedule=jp.schedules.one_f_one_b(2, 4), num_chunks=2),
    ),
    slow_hops=Mistake(
        errors.ScheduleError,
        "latency=2; the loop delays what crosses ranks by 0 or 1 ticks",
        lambda: engine(schedule=jp.schedules.one_f_one_b(2, 4, latency=2)),
    ),
    stages_of_the_schedule=Mistake(
        errors.ScheduleError,
        "num_stages=4, but the schedule '1f1b' on 2 ranks has 2 stages",
        lambda: engine(of(DENSE, num_stages=4)),
    ),
    # Layers and partitions
    fewer_layers_than_stages=Mistake(
        errors.PartitionError,
        "2 layers .*4 stages|4 stages .*2 layers",
        lambda: engine(of(Block(), DENSE), mesh=jp.make_mesh(4)).init(KEY, EIGHT),
    ),
    unknown_partition=Mistake(
        errors.PartitionError,
        "'unifrom'.*did you mean 'uniform'",
        lambda: engine(of(Block(), DENSE, partition_method="unifrom")).init(KEY, EIGHT),
    ),
    layers_that_do_not_fit=Mistake(
        errors.LayerError,
        r"layer 01_LSTM cannot take what 00_Dense gives, float32\[2,3\].*so that they fit",
        lambda: engine(of(DENSE, jp.LayerSpec(nn.RNN, None, name="01_LSTM"))).init(KEY, EIGHT),
    ),
    functions_that_do_not_fit=Mistake(
        errors.LayerError,
        r"01_lambda cannot take what 00_Dense gives, float32\[2,3\].*\(2, ?3\).*\(5,\)",
        lambda: engine(of(DENSE, lambda x: x + jnp.zeros(5))).init(KEY, EIGHT),
    ),
    inputs_that_do_not_fit=Mistake(
        errors.LayerError,
        r"layer 00_Embed cannot take what batch\['inputs'\] gives, float32\[2,8\].*integer",
        lambda: engine(of(jp.LayerSpec(nn.Embed, 16, 3), DENSE)).init(KEY, EIGHT),
    ),
    batch_norm=Mistake(
        errors.LayerError,
        "layer 00_BatchNorm: BatchNorm keeps state.*'batch_stats'.*GroupNorm",
        lambda: engine(of(jp.LayerSpec(nn.BatchNorm, True), DENSE)).init(KEY, EIGHT),
    ),
    remat=Mistake(
        errors.LayerError,
        "remat='some'; expected 'none', 'full', a number of layers",
        lambda: engine(remat="some"),
    ),
    # Losses
    loss_not_reduced=Mistake(
        errors.LossError,
        r"row_losses gave float32\[2\]; expected a scalar.*\.mean\(\)",
        lambda: engine(of(Block(), DENSE, loss=row_losses)).init(KEY, EIGHT),
    ),
    loss_with_three_terms=Mistake(
        errors.LossError,
        "expected a scalar",
        lambda: engine(of(Block(), DENSE, loss=lambda y, b: (y.sum(), 1, 2))).init(KEY, EIGHT),
    ),
    # Batches
    indivisible=Mistake(
        errors.BatchError,
        "batch of 9 cannot be cut into 2 microbatches x 2 data ranks; .* are 8 or 12",
        lambda: engine(mesh=jp.make_mesh(2, 2), num_microbatches=2).init(KEY, vectors(9)),
    ),
    unequal_sizes=Mistake(
        errors.BatchError,
        "inputs: 8, targets: 4, weights: 8. Make them equal",
        lambda: engine().init(KEY, EIGHT | dict(targets=EIGHT["targets"][:4])),
    ),
    no_inputs=Mistake(
        errors.BatchError,
        "no field 'inputs'.*it has 'targets', 'weights'",
        lambda: engine().init(KEY, without("inputs")),
    ),
    no_side_input=Mistake(
        errors.BatchError,
        "layer 00_Block reads batch field 'segments'; the batch has 'inputs'.*batch_inputs",
        lambda: engine(of(SIDE, DENSE)).init(KEY, EIGHT),
    ),
    no_targets=Mistake(
        errors.BatchError,
        r'batch\["?\'?targets.*no such field: \'inputs\'',
        lambda: engine(of(Block(), DENSE, loss=jp.losses.mean_squared_error)).init(
            KEY, dict(inputs=EIGHT["inputs"])
        ),
    ),
    id_too_large=Mistake(
        errors.BatchError,
        r"'inputs' holds 16 at \(1, 2\), outside 0 <= id < 16",
        lambda: of_tokens().train_batch(None, tokens_with(16)),  # pyright: ignore
    ),
    negative_id=Mistake(
        errors.BatchError,
        r"'inputs' holds -1 at \(1, 2\), outside 0 <= id < 16",
        lambda: of_tokens().value_and_grad(None, tokens_with(-1)),
    ),
    wrong_id_on_a_device=Mistake(
        errors.BatchError,
        r"'inputs' holds 99 at \(1, 2\)",
        lambda: of_tokens().eval_batch(None, tokens_with(99, jax.device_put)),  # pyright: ignore
    ),
    wrong_target=Mistake(
        errors.BatchError,
        "'targets' holds 17",
        lambda: of_tokens().predict(None, tokens(4) | dict(targets=np.full((4, 5), 17))),  # pyright: ignore
    ),
    # The order of things
    no_optimizer=Mistake(
        errors.OptimizerError,
        "no optimizer, so it cannot train_batch. Give initialize.*optimizer",
        lambda: engine().train_batch(None, EIGHT),  # pyright: ignore
    ),
    place_before_any_batch=Mistake(
        errors.JaxpipeError,
        "seen no batch.*Call engine.partition\\(batch\\) or engine.init",
        lambda: engine().place({}),
    ),
)


def row_losses(outputs: Any, batch: Any) -> Any:
    return jnp.mean(jnp.square(outputs - batch["targets"]), axis=-1)


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_before_anything_is_compiled(name: str):
    mistake, before = MISTAKES[name], Count.compilations
    with pytest.raises(mistake.error, match="(?s)" + mistake.said) as told:
        mistake.make()
    assert type(told.value) is mistake.error
    assert Count.compilations == before


def test_ids_may_go_unchecked():
    quiet = of_tokens(check_ids=False)
    batch = tokens_with(15)
    state = quiet.init(KEY, batch)
    want = quiet.eval_batch(state, batch)["loss"]
    beyond = quiet.eval_batch(state, tokens_with(16))["loss"]
    assert np.isfinite(want) and not np.array_equal(beyond, want)
    with pytest.raises(errors.BatchError, match="check_ids=False"):
        of_tokens().eval_batch(state, tokens_with(16))


# --- Trees given to place -------------------------------------------------------------------------


def changed(tree: Any, **leaves: Any) -> Any:
    dense = {name: x for name, x in (tree["01_Dense"] | leaves).items() if x is not None}
    return tree | {"01_Dense": dense}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(bias=None), r"missing \[\"\['01_Dense'\]\['bias'\]\"\], extra nothing"),
        (dict(more=np.zeros(3)), r"missing nothing, extra \[\"\['01_Dense'\]\['more'\]\"\]"),
        (dict(bias=np.zeros(4, np.float32)), r"\['01_Dense'\]\['bias'\] is float32\[4\].*\[3\]"),
        (dict(bias=np.zeros(3, np.int32)), r"\['bias'\] is int32\[3\]; the model has float32\[3\]"),
    ],
)
def test_place_names_the_leaf_that_does_not_fit(change: dict[str, Any], said: str):
    known = engine(of(Block(), DENSE))
    known.partition(EIGHT)
    fits = of(Block(), DENSE).init(KEY, EIGHT)
    known.place(fits)
    before = Count.compilations
    with pytest.raises(errors.JaxpipeError, match=said):
        known.place(changed(fits, **change))
    assert Count.compilations == before


@pytest.mark.parametrize("wrap", [optax.MultiSteps, optax.apply_if_finite])
def test_optimizers_that_choose_between_whole_trees_are_refused(wrap: Any):
    # Both select whole new trees over whole old ones by a flag of all ranks.
    optimizer = wrap(optax.adam(1e-3), 2)
    optimizer = getattr(optimizer, "gradient_transformation", lambda: optimizer)()
    model = of(jp.LayerSpec(nn.Dense, 4 * 4096), DENSE)
    before = Count.compilations
    with pytest.raises(
        errors.OptimizerError, match=r"mixes whole arrays of layers.*Use an optimizer"
    ):
        engine(model, optimizer=optimizer).init(KEY, EIGHT)
    assert Count.compilations == before
    assert WIDTH * 4 * 4096 > 4096
