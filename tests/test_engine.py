"""The engine's functions: what they give, what they leave alone, and where it all lives."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh
from zoo import WIDTH, Block, functions, largest_error, linen, mean_loss, vectors

import jaxpipe as jp
from jaxpipe.compiler_options import preset

KEY = jax.random.key(0)
BATCH = vectors(8)
MODEL = linen(3)
OPTIMIZER = optax.adam(0.05)


@functools.cache
def engine() -> jp.Engine:
    """One engine for many tests: what it has compiled, it keeps."""
    return jp.initialize(
        MODEL, mesh=jp.make_mesh(pipe=2), optimizer=OPTIMIZER, num_microbatches=4, fill=float("nan")
    )


plain_init = jax.jit(functools.partial(MODEL.init, batch=BATCH))
plain_loss = jax.jit(MODEL.loss)


@functools.cache
def fresh() -> Any:
    state = engine().init(KEY, BATCH)
    return jax.tree.map(np.asarray, engine().logical(state.params)), state


def to_donate() -> jp.TrainState:
    return jax.tree.map(jnp.copy, fresh()[1])


def params_of(state: jp.TrainState) -> Any:
    return jax.tree.map(np.asarray, engine().logical(state.params))


def same(got: Any, want: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


# --- State ----------------------------------------------------------------------------------------


def test_init_makes_the_models_own_parameters():
    params, state = fresh()
    assert largest_error(params, plain_init(KEY)) < 1e-6
    assert int(state.step) == 0 and state.step.dtype == jnp.int32
    other = params_of(engine().init(jax.random.key(1), BATCH))
    assert largest_error(other, params) > 0.1


def test_old_style_keys_are_taken_and_init_repeats_itself():
    got = engine().init(jax.random.PRNGKey(0), BATCH)
    same(params_of(got), fresh()[0])


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_the_kind_of_key_stays_the_users(impl: str):
    plain = jp.initialize(functions(2), mesh=jp.make_mesh(pipe=2), num_microbatches=2)
    state = plain.init(jax.random.key(3, impl=impl), BATCH)
    assert state.key_impl == impl and str(jax.random.key_impl(state.step_key)) == impl
    assert plain.value_and_grad(state.params, BATCH, state.step_key)[0] > 0


def test_the_abstract_state_is_the_states():
    state, spec = fresh()[1], engine().abstract_state(BATCH)
    assert jax.tree.structure(spec) == jax.tree.structure(state)
    for array, want in zip(jax.tree.leaves(state), jax.tree.leaves(spec), strict=True):
        assert (array.shape, array.dtype) == (want.shape, want.dtype)
        assert array.sharding.is_equivalent_to(want.sharding, array.ndim)


def test_without_an_optimizer_there_is_no_optimizer_state():
    plain = jp.initialize(functions(2), mesh=jp.make_mesh(pipe=2), num_microbatches=2)
    state = plain.init(KEY, BATCH)
    assert state.opt_state is None and plain.abstract_state(BATCH).opt_state is None


def test_place_is_the_way_back_from_logical():
    params, state = fresh()
    placed = engine().place(params)
    for a, b in zip(jax.tree.leaves(placed), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.sharding == b.sharding
    same(engine().logical(placed), params)
    doubled = engine().place(jax.tree.map(lambda x: 2 * x, plain_init(KEY)))
    assert largest_error(engine().logical(doubled), jax.tree.map(lambda x: 2 * x, params)) < 1e-6


# --- Training -------------------------------------------------------------------------------------


def test_train_batch_takes_its_state_and_gives_a_new_one():
    state = to_donate()
    new, metrics = engine().train_batch(state, BATCH)
    assert all(x.is_deleted() for x in jax.tree.leaves(state.params.buffers))
    assert int(new.step) == 1
    assert metrics.keys() == {"loss", "weight", "grad_norm", "skipped"}
    assert all(x.shape == () for x in metrics.values())
    assert {k: str(x.dtype) for k, x in metrics.items()} == dict(
        loss="float32", weight="float32", grad_norm="float32", skipped="int32"
    )
    np.testing.assert_allclose(metrics["weight"], BATCH["weights"].sum(), rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], plain_loss(fresh()[0], BATCH), rtol=1e-6)
    again, same_metrics = engine().train_batch(to_donate(), BATCH)
    same(params_of(again), params_of(new))
    same(same_metrics, metrics)


def test_training_learns_and_evaluation_sees_it():
    state = to_donate()
    losses = []
    for _ in range(12):
        state, metrics = engine().train_batch(state, BATCH)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.5 * losses[0]
    metrics = engine().eval_batch(state, BATCH)
    np.testing.assert_allclose(metrics["loss"], plain_loss(params_of(state), BATCH), rtol=1e-5)
    np.testing.assert_allclose(metrics["weight"], BATCH["weights"].sum(), rtol=1e-6)
    want = jax.jit(MODEL.apply)(params_of(state), BATCH)
    outputs = engine().predict(state, BATCH)
    assert outputs.shape == (8, 3) and largest_error(outputs, want) < 1e-5
    assert not state.params.buffers[min(state.params.buffers)].is_deleted()


def test_value_and_grad_is_the_same_inside_ones_own_step():
    state = fresh()[1]
    loss, grads = engine().value_and_grad(state.params, BATCH, KEY)

    @jax.jit
    def own(params: Any, batch: Any, key: Any) -> Any:
        loss, grads = engine().value_and_grad(params, batch, key)
        return 2 * loss, jax.tree.map(jnp.negative, grads)

    double, negative = own(state.params, BATCH, KEY)
    np.testing.assert_allclose(double, 2 * loss, rtol=1e-6)
    assert jax.tree.structure(negative) == jax.tree.structure(state.params)
    back = jax.tree.map(np.negative, engine().logical(negative))
    assert largest_error(back, engine().logical(grads)) < 1e-6
    want = jax.jit(jax.grad(MODEL.loss))(fresh()[0], BATCH)
    assert largest_error(engine().logical(grads), want) < 1e-6


def test_jax_arrays_and_numpy_arrays_are_alike():
    state = fresh()[1]
    want = engine().eval_batch(state, BATCH)
    same(engine().eval_batch(state, jax.tree.map(jnp.asarray, BATCH)), want)
    wide = jax.tree.map(lambda x: x.astype(np.float64), BATCH)
    same(engine().eval_batch(state, wide), want)


def test_batches_of_other_sizes_have_their_own_program():
    state, large = fresh()[1], vectors(16)
    metrics = engine().eval_batch(state, large)
    np.testing.assert_allclose(metrics["loss"], plain_loss(fresh()[0], large), rtol=1e-6)
    assert engine().predict(state, large).shape == (16, 3)


def test_a_function_is_traced_once_for_a_batch_shape():
    traced = []

    def loss(outputs: Any, batch: Any) -> Any:
        traced.append(1)
        return mean_loss(outputs, batch)

    model = jp.PipelineModule([jp.LayerSpec(nn.Dense, 3)], loss)
    own = jp.initialize(model, mesh=jp.make_mesh(), optimizer=OPTIMIZER, num_microbatches=2)
    state, _ = own.train_batch(own.init(KEY, BATCH), BATCH)
    count = len(traced)
    for _ in range(2):
        state, _ = own.train_batch(state, jax.tree.map(np.copy, BATCH))
    assert count > 0 and len(traced) == count


# --- Meshes, dtypes -------------------------------------------------------------------------------


def mesh_of(*shape: int, names: tuple[str, ...]) -> Mesh:
    devices = np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape)
    return Mesh(devices, names, axis_types=(AxisType.Auto,) * len(shape))


FUNCTIONS = functions(3)
plain_gradients = jax.jit(jax.value_and_grad(FUNCTIONS.loss))


@pytest.mark.parametrize(
    "mesh",
    [
        mesh_of(2, names=("pipe",)),
        mesh_of(2, 2, names=("data", "pipe")),
        pytest.param(jp.make_mesh(pipe=2, tensor=2), marks=pytest.mark.slow),
        jp.make_mesh(pipe=2, devices=jax.devices()[::-1]),
    ],
    ids=["pipe alone", "data first", "tensor", "devices in another order"],
)
def test_any_mesh_with_a_pipe_axis_will_do(mesh: Mesh):
    own = jp.initialize(FUNCTIONS, mesh=mesh, num_microbatches=2)
    state = own.init(KEY, BATCH)
    params = own.logical(state.params)
    loss, grads = own.value_and_grad(state.params, BATCH)
    want_loss, want = plain_gradients(params, BATCH)
    np.testing.assert_allclose(loss, want_loss, rtol=1e-6)
    assert largest_error(own.logical(grads), want) < 1e-6


def test_compute_in_bfloat16_keeps_parameters_and_gradients_in_float32():
    seen = []

    class See(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            scale = self.param("scale", nn.initializers.ones, ())
            seen.append((x.dtype, jnp.asarray(scale).dtype))
            return x * scale

    layers = [jp.LayerSpec(Block), jp.LayerSpec(See), jp.LayerSpec(nn.Dense, 3)]
    model = jp.PipelineModule(layers, mean_loss, compute_dtype=jnp.bfloat16)
    own = jp.initialize(model, mesh=jp.make_mesh(pipe=2), num_microbatches=2)
    state = own.init(KEY, BATCH)
    params = own.logical(state.params)
    assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    seen.clear()
    loss, grads = own.value_and_grad(state.params, BATCH)
    assert set(seen) == {(jnp.dtype(jnp.bfloat16),) * 2}
    assert {x.dtype for x in jax.tree.leaves(grads)} == {jnp.dtype(jnp.float32)}
    want_loss, want = jax.jit(jax.value_and_grad(model.loss))(params, BATCH)
    np.testing.assert_allclose(loss, want_loss, rtol=1e-2)
    assert largest_error(own.logical(grads), want) < 0.05  # bfloat16 has 8 bits


# --- What can be looked at ------------------------------------------------------------------------


def test_plans_can_be_printed():
    cut = engine().partition(BATCH)
    assert cut.num_stages == 2 and "0-1  Block x2" in str(cut)
    assert str(engine().program(BATCH)).startswith("program 1f1b: 10 ticks, 2 ranks")
    assert str(engine().schedule).startswith("1f1b: 2 ranks")


def test_partition_and_schedule_can_be_given():
    schedule = jp.schedules.gpipe(2, 4)
    model = jp.PipelineModule(
        [Block(), Block(), nn.Dense(3)], mean_loss, partition_method=[0, 2, 3]
    )
    own = jp.initialize(model, mesh=jp.make_mesh(pipe=2), schedule=schedule)
    assert own.partition(BATCH).boundaries == (0, 2, 3)
    assert own.schedule is schedule and own.program(BATCH).held == (4, 4)
    assert own.program(BATCH).num_ranks == 2 and WIDTH == 8


# --- Compiler options -----------------------------------------------------------------------------


def test_on_cpu_there_are_no_options_but_ones_own():
    assert engine().compiler_options() == {}
    mine = jp.initialize(
        MODEL, mesh=jp.make_mesh(pipe=2), num_microbatches=4,
        compiler_options=dict(xla_cpu_enable_fast_math=False, xla_gpu_autotune_level=None),
    )  # fmt: skip
    assert mine.compiler_options() == {"xla_cpu_enable_fast_math": False}


def test_options_reach_xla_and_stay_out_of_ones_own_jit():
    other = jp.initialize(
        functions(2), mesh=jp.make_mesh(pipe=2), num_microbatches=2,
        compiler_options=dict(xla_no_such_option=True),
    )  # fmt: skip
    params = other.init(KEY, BATCH).params
    with pytest.raises(Exception, match="xla_no_such_option"):
        other.value_and_grad(params, BATCH)
    loss, _ = jax.jit(other.value_and_grad)(params, BATCH)
    # Also where nothing that goes in is traced.
    same(jax.jit(lambda: other.value_and_grad(params, BATCH)[0])(), loss)


@pytest.mark.parametrize("version", ["0.10.2", "0.11.2", "0.12.0.1", "0.13.0.dev20261201"])
def test_the_options_of_a_version(version: str):
    found = preset("gpu", version, latency=1)
    assert preset("gpu", version, latency=0).items() < found.items()
    assert ("xla_disable_hlo_passes" in found) == (not version.startswith("0.10"))


def test_abstract_batches_compile():
    spec = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), dict(BATCH))
    made = engine().compiled(engine().abstract_state(spec), spec)
    state, metrics = made(to_donate(), jax.device_put(dict(BATCH), made.input_shardings[0][1]))
    assert int(state.step) == 1 and np.isfinite(metrics["loss"])
