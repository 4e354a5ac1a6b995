"""Where parameters live: every leaf has its place, nothing is stored twice, nothing is lost."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zoo import MODELS, WIDTH, batch_for, largest_error, mean_loss, vectors

import jaxpipe as jp
from jaxpipe.models import GPTConfig, convnet, gpt
from jaxpipe.storage import (
    Layout,
    LeafSpec,
    abstract_placed,
    accumulate,
    build_layout,
    logical,
    place,
    read,
    write,
)

KEY = jax.random.key(0)


class Random(NamedTuple):
    """Leaves that somebody might have, on so many ranks."""

    num_ranks: int
    leaves: list[LeafSpec]

    @property
    def layout(self) -> Layout:
        treedef = jax.tree.structure(list(range(len(self.leaves))))
        return build_layout(treedef, self.leaves, self.num_ranks)

    @property
    def largest_share(self) -> int:
        return max(self.bytes_on(rank) for rank in range(self.num_ranks))

    def bytes_on(self, rank: int, like: Any = lambda leaf: True) -> int:
        return sum(x.bytes for x in self.leaves if rank in (x.rank, *x.copies) and like(x))


SHAPES = st.sampled_from(
    [(), (1,), (2,), (4,), (2, 2), (8, 8), (64,), (5, 7), (100,), (0,), (999,)]
)
NEVER = st.just(False)
FLOAT32 = st.just(np.dtype(np.float32))
DTYPES = st.sampled_from(
    [np.dtype(d) for d in (np.float32, ml_dtypes.bfloat16, np.int32, np.bool_)]
)


@st.composite
def randoms(draw: Any, dtypes: Any = FLOAT32, frozen: Any = NEVER) -> Random:
    num_ranks = draw(st.integers(1, 4))
    ranks = st.integers(0, num_ranks - 1)
    leaves = []
    for i in range(draw(st.integers(1, 16))):
        rank, *copies = draw(st.lists(ranks, min_size=1, max_size=2, unique=True))
        dtype = draw(dtypes)
        leaves.append(LeafSpec(f"[{i}]", draw(SHAPES), dtype, rank, tuple(copies), draw(frozen)))
    return Random(num_ranks, leaves)


anything = randoms(dtypes=DTYPES, frozen=st.booleans())


@given(anything)
def test_every_leaf_has_a_home_of_its_own_on_each_of_its_ranks(case: Random):
    layout = case.layout
    taken = {
        (name, rank): np.zeros(int(np.prod(spec.shape)), int)
        for name, spec in layout.buffers.items()
        for rank in range(case.num_ranks)
    }
    for leaf, homes in zip(layout.leaves, layout.homes, strict=True):
        assert set(homes) == {leaf.rank, *leaf.copies}
        for rank, (buffer, offset) in homes.items():
            row = taken[buffer, rank]
            assert offset >= 0 and offset + leaf.size <= row.size
            row[offset : offset + leaf.size] += 1
            assert layout.buffers[buffer].dtype == leaf.dtype
    assert all((row <= 1).all() for row in taken.values())
    assert layout.share == [case.bytes_on(rank) for rank in range(case.num_ranks)]


@given(randoms(frozen=st.booleans()))
def test_no_rank_holds_more_than_the_largest_share(case: Random):
    assert case.largest_share <= case.layout.bytes_per_rank <= 1.05 * case.largest_share


@given(anything)
def test_with_several_dtypes_it_is_the_largest_share_of_each(case: Random):
    shares = [
        max(case.bytes_on(rank, lambda x, d=dtype: x.dtype == d) for rank in range(case.num_ranks))
        for dtype in {x.dtype for x in case.leaves}
    ]
    assert case.largest_share <= case.layout.bytes_per_rank <= 1.05 * sum(shares)


def test_alike_leaves_share_buffers_whatever_else_there_is():
    # Two alike blocks on each rank, an odd leaf of another dtype on one.
    f32, i32 = np.dtype(np.float32), np.dtype(np.int32)
    block = lambda rank: [LeafSpec("kernel", (8, 8), f32, rank), LeafSpec("bias", (8,), f32, rank)]
    leaves = [*block(0), *block(0), *block(1), *block(1), LeafSpec("ids", (100,), i32, 1)]
    buffers = Random(2, leaves).layout.buffers
    rows = [buffer.shape for name, buffer in buffers.items() if "float32" in name]
    assert sorted(rows) == [(8,), (8,), (8, 8), (8, 8)]


def bits(tree: Any) -> list[bytes]:
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


@settings(max_examples=25, deadline=None)
@given(anything, st.randoms(use_true_random=False))
def test_a_tree_comes_back_to_the_bit(case: Random, random: Any):
    layout, mesh = case.layout, jp.make_mesh(pipe=case.num_ranks)

    def drawn(leaf: LeafSpec) -> np.ndarray:
        noise = np.frombuffer(random.randbytes(leaf.bytes), np.uint8)
        noise = noise % 2 == 0 if leaf.dtype == bool else noise.view(leaf.dtype)
        return noise.reshape(leaf.shape)

    tree = [drawn(leaf) for leaf in layout.leaves]
    placed = place(layout, mesh, tree)
    back = logical(placed)
    assert bits(back) == bits(tree)
    target = abstract_placed(layout, mesh)
    for array, spec in zip(jax.tree.leaves(placed), jax.tree.leaves(target), strict=True):
        assert (array.shape, array.dtype, array.sharding) == (spec.shape, spec.dtype, spec.sharding)
        assert all(shard.data.shape[0] == 1 for shard in array.addressable_shards)


@settings(max_examples=50, deadline=None)  # JAX compiles each shape once
@given(randoms(), st.integers(0, 2**31))
def test_rows_are_read_and_written_leaf_by_leaf(case: Random, seed: int):
    layout, rng = case.layout, np.random.default_rng(seed)
    rows = {name: jnp.zeros(b.shape, b.dtype) for name, b in layout.buffers.items()}
    mine = [i for i, homes in enumerate(layout.homes) if 0 in homes]
    values = {i: rng.normal(size=layout.leaves[i].shape).astype(np.float32) for i in mine}
    for i in mine:
        write(rows, layout.homes[i][0], jnp.asarray(values[i]))
        accumulate(rows, layout.homes[i][0], jnp.asarray(values[i]))
    for i in mine:
        got = read(rows, layout.homes[i][0], layout.leaves[i].shape)
        np.testing.assert_array_equal(got, 2 * values[i])
    total = sum(float(np.sum(np.abs(v))) for v in values.values())
    assert sum(float(jnp.sum(jnp.abs(r))) for r in rows.values()) == pytest.approx(2 * total)


def test_frozen_leaves_are_left_out_of_the_layout_of_gradients():
    f32 = np.dtype(np.float32)
    leaves = [LeafSpec(str(i), (i + 1,), f32, i % 2, (), frozen=i == 1) for i in range(4)]
    layout = Random(2, leaves).layout
    assert [leaf.path for leaf in layout.trainable.leaves] == ["0", "2", "3"]
    assert layout.trainable.treedef == jax.tree.structure([0, None, 0, 0])
    assert layout.trainable is layout.trainable
    whole = Random(2, leaves[::2]).layout
    assert whole.trainable is whole


@given(anything)
def test_the_row_of_gradients_is_a_beginning_of_the_row_of_parameters(case: Random):
    layout, moving = case.layout, case.layout.trainable
    ends = dict.fromkeys(moving.buffers, 0)
    homes = dict(zip((leaf.path for leaf in layout.leaves), layout.homes, strict=True))
    for leaf, ranks in zip(moving.leaves, moving.homes, strict=True):
        assert ranks == homes[leaf.path]
        for name, offset in ranks.values():
            ends[name] = max(ends[name], offset + leaf.size)
    for name, buffer in moving.buffers.items():
        assert int(np.prod(buffer.shape)) == ends[name] <= int(np.prod(layout.buffers[name].shape))
    trained = [case.bytes_on(rank, lambda x: not x.frozen) for rank in range(case.num_ranks)]
    assert max(trained) <= moving.bytes_per_rank <= layout.bytes_per_rank


# --- Real arrays ----------------------------------------------------------------------------------


def bytes_per_device(tree: Any) -> dict[Any, int]:
    sizes: dict[Any, int] = {}
    for array in jax.tree.leaves(tree):
        for shard in array.addressable_shards:
            sizes[shard.device] = sizes.get(shard.device, 0) + shard.data.nbytes
    return sizes


def digits(size: int) -> dict[str, Any]:
    return dict(inputs=np.zeros((size, 8, 8, 1), np.float32), targets=np.zeros(size, np.int32))


def text(size: int) -> dict[str, Any]:
    return dict(inputs=np.zeros((size, 8), np.int32), targets=np.zeros((size, 8), np.int32))


WORDS = GPTConfig(vocab_size=300, width=32, num_layers=3, sequence_length=64)
classifier = functools.partial(jp.PipelineModule, loss_fn=jp.losses.cross_entropy)
NETS: dict[str, tuple[jp.PipelineModule, Any, int]] = dict(
    convnet=(classifier(convnet(10, (48, 64, 64))), digits(4), 3),
    gpt=(classifier(gpt(WORDS)), text(4), 3),
    unlike=(MODELS["unlike"](8), vectors(4), 3),
)


@pytest.mark.parametrize(
    "name", [*[pytest.param(name, marks=pytest.mark.slow) for name in ("convnet", "gpt")], "unlike"]
)
def test_no_device_ever_holds_more_than_the_largest_share(name: str):
    model, batch, ranks = NETS[name]
    optimizer = optax.adam(0.1) if name == "unlike" else optax.identity()
    engine = jp.initialize(
        model, mesh=jp.make_mesh(pipe=ranks), optimizer=optimizer, num_microbatches=2
    )
    # The shapes alone say what each stage needs.
    params, cut = model.outline(batch).params, engine.partition(batch)
    bytes_of = lambda name: sum(4 * x.size for x in jax.tree.leaves(params[name]))
    share = max(sum(bytes_of(model.layers[i].name) for i in cut.stage(s)) for s in range(ranks))
    whole = sum(map(bytes_of, params))
    assert share < 0.9 * whole
    init = jax.jit(lambda key: engine.init(key, batch)).lower(KEY).compile()
    state = engine.init(KEY, batch) if name == "unlike" else init(KEY)
    want = jax.jit(functools.partial(model.init, batch=batch))(KEY)
    assert largest_error(engine.logical(state.params), want) < 1e-6
    held = bytes_per_device(state.params)
    assert len(held) == ranks and max(held.values()) <= 1.05 * share
    # A step count, Adam's too, and a key; 8 bytes for the address of each output.
    rest = 16 + 8 * len(jax.tree.leaves(state))
    moments = 2 if name == "unlike" else 0
    opt_state = bytes_per_device(state.opt_state)
    assert max(opt_state.values(), default=0) <= 1.05 * moments * share + rest
    memory: Any = init.memory_analysis()
    assert memory.output_size_in_bytes <= 1.05 * (1 + moments) * share + rest


def test_making_parameters_takes_no_more_room_nor_instructions_for_more_layers():
    def made(num_layers: int) -> tuple[int, int]:
        config = GPTConfig(vocab_size=32, width=32, num_layers=num_layers, sequence_length=16)
        model = jp.PipelineModule(gpt(config), jp.losses.cross_entropy)
        engine = jp.initialize(model, mesh=jp.make_mesh(pipe=2), num_microbatches=2)
        init = jax.jit(lambda key: engine.init(key, text(4)).params).lower(KEY).compile()
        memory: Any = init.memory_analysis()
        return memory.temp_size_in_bytes, str(init.as_text()).count(" while(")

    block = 4 * 12 * 32**2  # bytes of a block's matrices
    (room, loops), (more_room, more_loops) = made(6), made(12)
    assert more_room < 1.05 * room < 3.5 * block
    assert more_loops == loops


# --- Ties, and steps of one's own -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["tied", pytest.param("linen", marks=pytest.mark.slow)])
def test_ones_own_elementwise_step_is_the_step_on_the_logical_tree(name: str):
    model, batch = MODELS[name](2), batch_for(name, 8)
    engine = jp.initialize(model, mesh=jp.make_mesh(pipe=2), num_microbatches=2)
    placed: Any = engine.init(KEY, batch).params
    params = jax.tree.map(jnp.asarray, engine.logical(placed))
    # AdamW's decay touches what has no gradient too: copies of tied leaves, padding.
    optimizer = optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(0.01, weight_decay=0.1))

    def step_by(value_and_grad: Any) -> Any:
        @jax.jit
        def step(params: Any, opt_state: Any, batch: Any) -> Any:
            loss, grads = value_and_grad(params, batch)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, loss, optax.tree.norm(grads)

        return step

    placed_step = step_by(engine.value_and_grad)
    plain_step = step_by(jax.value_and_grad(model.loss))
    placed_state, plain_state = optimizer.init(placed), optimizer.init(params)
    for _ in range(4):
        placed, placed_state, loss, norm = placed_step(placed, placed_state, batch)
        params, plain_state, want, plain_norm = plain_step(params, plain_state, batch)
        np.testing.assert_allclose(loss, want, rtol=1e-6)
        np.testing.assert_allclose(norm, plain_norm, rtol=1e-6)
    # Adam divides by the root of the second moment: where a gradient is near zero its rounding
    # errors are as large as itself, up to a few percent of the step of 0.01.
    assert largest_error(engine.logical(placed), params) < 1e-4


def test_a_tied_leaf_is_one_leaf():
    model, batch = MODELS["tied"](3), batch_for("tied", 8)
    engine = jp.initialize(model, mesh=jp.make_mesh(pipe=4), num_microbatches=2)
    state = engine.init(KEY, batch)
    params = engine.logical(state.params)
    assert [name for name in params if "Embed" in name] == ["00_Embed"]
    (home,) = [homes for homes in state.params.layout.homes if len(homes) > 1]
    assert sorted(home) == [0, 3]
    _, grads = engine.value_and_grad(state.params, batch)
    sums = lambda tree: sum(float(np.sum(np.square(x))) for x in jax.tree.leaves(tree))
    assert sums(grads.buffers) == pytest.approx(sums(engine.logical(grads)), rel=1e-6)
    assert sums(engine.place(params).buffers) > 1.01 * sums(
        params
    )  # values have room on both ranks


def test_placed_trees_show_what_they_are():
    model = jp.PipelineModule([jp.LayerSpec(nn.Dense, WIDTH)] * 2, mean_loss)
    engine = jp.initialize(model, mesh=jp.make_mesh(pipe=2), num_microbatches=1)
    batch = dict(inputs=np.zeros((2, WIDTH), np.float32), targets=np.zeros((2, WIDTH), np.float32))
    assert repr(engine.init(KEY, batch).params) == "Placed(4 leaves in 2 buffers)"
