"""Master weights in float32, layers in bfloat16, sums in float32."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from zoo import Block, largest_error, vectors, weighted_loss

import jaxpipe as jp

NUM_MICROBATCHES = 64


def half() -> jp.PipelineModule:
    layers = [jp.LayerSpec(Block) for _ in range(3)]
    last = jp.LayerSpec(nn.Dense, 3)
    return jp.PipelineModule([*layers, last], weighted_loss, compute_dtype=jnp.bfloat16)


@pytest.fixture(scope="module")
def run() -> dict[str, Any]:
    model, batch = half(), vectors(2 * NUM_MICROBATCHES)
    engine = jp.initialize(
        model, mesh=jp.make_mesh(pipe=2), optimizer=optax.sgd(1e-3),
        num_microbatches=NUM_MICROBATCHES, fill=float("nan"),
    )  # fmt: skip
    state = engine.init(jax.random.key(0), batch)
    params = jax.tree.map(np.asarray, engine.logical(state.params))
    return dict(model=model, batch=batch, engine=engine, state=state, params=params)


def test_weights_stay_in_float32(run: dict[str, Any]):
    _, grads = run["engine"].value_and_grad(run["state"].params, run["batch"])
    for tree in (run["params"], run["engine"].logical(grads)):
        assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {np.dtype("float32")}


def test_layers_see_bfloat16_and_the_loss_float32():
    seen = {}

    def spy(x: jax.Array) -> jax.Array:
        seen["layer"] = x.dtype
        return x

    def loss(outputs: jax.Array, batch: Any) -> jax.Array:
        seen["loss"] = outputs.dtype
        return jnp.mean(outputs)

    model = jp.PipelineModule([jp.LayerSpec(nn.Dense, 3), spy], loss, compute_dtype=jnp.bfloat16)
    model.outline(vectors(2))
    assert seen == dict(layer=jnp.bfloat16, loss=jnp.float32)


def test_gradients_are_those_of_the_plain_model_in_bfloat16(run: dict[str, Any]):
    model, batch, params = run["model"], run["batch"], run["params"]
    loss, grads = run["engine"].value_and_grad(run["state"].params, batch)
    want_loss, want = jax.jit(
        jax.value_and_grad(lambda p: model.loss(p, batch, num_microbatches=NUM_MICROBATCHES))
    )(params)
    # One bfloat16 rounding is 4e-3; the same cuts round alike but for what XLA fuses.
    np.testing.assert_allclose(loss, want_loss, rtol=2e-3)
    assert largest_error(run["engine"].logical(grads), want) < 2e-2


def test_sums_over_microbatches_are_in_float32(run: dict[str, Any]):
    """64 equal microbatches: the mean of equal gradients is the gradient, unless sums round."""
    one = {k: v[:2] for k, v in run["batch"].items()}
    batch = {k: np.tile(v, (NUM_MICROBATCHES, *[1] * (v.ndim - 1))) for k, v in one.items()}
    _, grads = run["engine"].value_and_grad(run["state"].params, batch)
    single = jp.initialize(half(), mesh=jp.make_mesh(pipe=2), num_microbatches=1)
    state = single.init(jax.random.key(0), one)
    _, want = single.value_and_grad(state.params, one)
    assert largest_error(run["engine"].logical(grads), single.logical(want)) < 1e-6


def test_training_moves_master_weights_by_less_than_bfloat16_resolves(run: dict[str, Any]):
    engine, batch = run["engine"], run["batch"]
    state = engine.init(jax.random.key(0), batch)
    before = engine.logical(state.params)
    metrics = {}
    for _ in range(3):
        state, metrics = engine.train_batch(state, batch)
    assert np.isfinite(float(metrics["loss"]))
    after = engine.logical(state.params)
    moved = [np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (after, before)), strict=True)]
    assert all(moved)
