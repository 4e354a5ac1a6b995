"""Loss scaling, and steps that are skipped on all ranks because one has no finite gradient."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from zoo import Block, largest_error, linen, vectors, weighted_loss

import jaxpipe as jp
from jaxpipe.errors import OptimizerError
from jaxpipe.loss_scale import resolve_loss_scale


def spiked(w: jax.Array, x: jax.Array, *, spike: jax.Array) -> jax.Array:
    """x itself while w is 0; only the gradient of w sees the spike."""
    return x + spike[:, None].astype(x.dtype) * w


def model(dtype: Any = jnp.float16) -> jp.PipelineModule:
    spike = jp.FunctionLayer(
        spiked, lambda key, x, spike: jnp.zeros(x.shape[-1]), batch_inputs=("spike",), name="spike"
    )
    layers = [jp.LayerSpec(Block), spike, jp.LayerSpec(Block), jp.LayerSpec(nn.Dense, 3)]
    return jp.PipelineModule(layers, weighted_loss, compute_dtype=dtype, partition_method="uniform")


def batch(spike: float = 0.0) -> dict[str, np.ndarray]:
    """The spike is on one row of one data rank."""
    found = vectors(16) | dict(spike=np.zeros(16, np.float32))
    found["spike"][9] = spike
    return found


def engine(**settings: Any) -> jp.Engine:
    given: dict[str, Any] = dict(optimizer=optax.adam(1e-2), num_microbatches=4)
    given |= dict(fill=float("nan"))
    given |= dict(model=model(), mesh=jp.make_mesh(pipe=4, data=2)) | settings
    return jp.initialize(**given)


def values(state: jp.TrainState) -> Any:
    return jax.tree.map(np.asarray, (state.params, state.opt_state))


@pytest.mark.parametrize(
    ("schedule", "zero"), [("1f1b", 2), pytest.param("zb-h1", 0, marks=pytest.mark.slow)]
)
def test_an_overflow_on_one_rank_skips_the_step_on_all(schedule: str, zero: int):
    run = engine(schedule=schedule, zero=zero, loss_scale=jp.LossScale(initial=64))
    state = run.init(jax.random.key(0), batch())
    state, metrics = run.train_batch(state, batch())
    assert (int(metrics["skipped"]), float(metrics["loss_scale"])) == (0, 64)
    before = values(state)
    for count in (1, 2):
        state, metrics = run.train_batch(state, batch(spike=6e4))
        assert np.isfinite(metrics["loss"]) and not np.isfinite(metrics["grad_norm"])
        assert int(metrics["skipped"]) == int(state.skipped) == count
        jax.tree.map(np.testing.assert_array_equal, values(state), before)
    assert state.loss_scale is not None and float(state.loss_scale.scale) == 16
    assert int(state.step) == 3
    state, metrics = run.train_batch(state, batch())
    assert (int(metrics["skipped"]), float(metrics["loss_scale"])) == (0, 16)
    moved = jax.tree.map(lambda a, b: np.any(a != b), values(state)[0], before[0])
    assert any(jax.tree.leaves(moved))


def test_steps_without_a_finite_loss_are_skipped_without_a_loss_scale_too():
    run = engine(model=model(None), mesh=jp.make_mesh(pipe=2, data=2))
    state = run.init(jax.random.key(0), batch())
    before = values(state)
    state, metrics = run.train_batch(state, batch(spike=float("nan")))
    assert int(metrics["skipped"]) == 1 and "loss_scale" not in metrics
    jax.tree.map(np.testing.assert_array_equal, values(state), before)
    state, metrics = run.train_batch(state, batch())
    assert int(metrics["skipped"]) == 0


def test_a_step_above_a_limit_is_skipped_on_all_and_the_scale_stays():
    scale = jp.LossScale(initial=64)
    run = engine(mesh=jp.make_mesh(pipe=2, data=2), zero=1, loss_scale=scale)
    state = run.init(jax.random.key(0), batch())
    before = values(state)
    after, metrics = run.train_batch(state, batch())
    usual, after = float(metrics["loss"]), values(after)
    state = run.init(jax.random.key(0), batch())
    for limits, skipped in (
        (dict(loss=0.99 * usual, grad_norm=np.inf), 1),
        (dict(loss=np.inf, grad_norm=1e-9), 2),
        (dict(loss=np.float32(usual), grad_norm=np.inf), 0),
    ):
        state, metrics = run.train_batch(state, batch(), limits)
        assert (int(metrics["skipped"]), float(metrics["loss_scale"])) == (skipped, 64)
        np.testing.assert_allclose(metrics["loss"], usual, rtol=1e-6)
        if skipped:
            jax.tree.map(np.testing.assert_array_equal, values(state), before)
    assert int(state.step) == 3
    jax.tree.map(np.testing.assert_array_equal, values(state), after)
    with pytest.raises(
        OptimizerError, match=r"limits of \['weight'\]; expected some of \['loss', "
    ):
        run.train_batch(state, batch(), dict(weight=3.0))


def test_a_scale_that_is_a_power_of_two_changes_no_bit_in_float32():
    found = []
    for scale in (None, 1024.0):
        run = jp.initialize(
            linen(3), mesh=jp.make_mesh(pipe=2), num_microbatches=4, loss_scale=scale
        )
        state = run.init(jax.random.key(0), vectors(8))
        loss, grads = run.value_and_grad(state.params, vectors(8))
        found.append((np.asarray(loss), run.logical(grads)))
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_a_scale_keeps_float16_gradients_that_would_be_zero():
    small = batch()
    small["weights"] = 1e-6 * small["weights"]  # 6e-8 is the least that float16 holds
    mesh = jp.make_mesh(pipe=2)
    want_engine = engine(model=model(None), mesh=mesh)
    state = want_engine.init(jax.random.key(0), small)
    want = want_engine.logical(want_engine.value_and_grad(state.params, small)[1])
    errors = []
    for scale in (None, 2.0**14):
        run = engine(loss_scale=scale, mesh=mesh)
        state = run.init(jax.random.key(0), small)
        errors.append(largest_error(run.logical(run.value_and_grad(state.params, small)[1]), want))
    assert errors[1] < 2e-2 < errors[0], errors


def test_the_scale_grows_after_good_steps_and_falls_no_further_than_its_smallest():
    scale = jp.LossScale(initial=8, interval=2, smallest=4, largest=16)
    state, seen = scale.start(), []
    for finite in (True, True, True, True, False, False, False, False, True, False):
        state = scale.next(state, jnp.asarray(finite))
        seen.append((float(state.scale), int(state.good_steps)))
    assert [s for s, _ in seen] == [8, 16, 16, 16, 8, 4, 4, 4, 4, 4]
    assert [g for _, g in seen] == [1, 0, 1, 0, 0, 0, 0, 0, 1, 0]


def test_what_means_nothing_is_refused():
    with pytest.raises(OptimizerError, match="smallest"):
        jp.LossScale(initial=0.5)
    with pytest.raises(OptimizerError, match="factor"):
        jp.LossScale(factor=1.0)
    with pytest.raises(OptimizerError, match="'dynamic'; expected 'auto'"):
        resolve_loss_scale("dynamic", None)
    run = engine(model=model(None))
    state = run.init(jax.random.key(0), batch())
    with pytest.raises(OptimizerError, match="does not scale"):
        run.value_and_grad(state.params, batch(), scale=2.0)


def test_float16_alone_is_scaled_by_itself():
    assert resolve_loss_scale("auto", jnp.float16) == jp.LossScale()
    assert resolve_loss_scale("auto", jnp.bfloat16) is None
    assert resolve_loss_scale("auto", None) is None
    assert resolve_loss_scale(8, jnp.float16) == jp.LossScale(8, None)
