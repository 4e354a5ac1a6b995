"""Frozen layers and leaves: no gradient, no work for one, no optimizer state, and no change."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from zoo import WIDTH, mean_loss, vectors

import jaxpipe as jp

KEY = jax.random.key(0)


def same(got: Any, want: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def three(frozen: tuple[Any, Any, Any]) -> jp.PipelineModule:
    sizes = zip((WIDTH, WIDTH, 3), frozen, strict=True)
    return jp.PipelineModule([jp.LayerSpec(nn.Dense, n, frozen=f) for n, f in sizes], mean_loss)


def num_products(frozen: tuple[Any, Any, Any]) -> int:
    """Matrix products in one pass of F and B over one rank."""
    batch = vectors(4)
    engine = jp.initialize(three(frozen), mesh=jp.make_mesh(), num_microbatches=1)
    params = engine.abstract_state(batch).params
    return str(jax.make_jaxpr(engine.value_and_grad)(params, batch, KEY)).count("dot_general[")


def test_frozen_leaves_cost_no_gradient_work():
    # Three forwards (the head's within B), three dW, two dx. B runs nothing of F again.
    assert num_products((False, False, False)) == 8
    assert num_products((True, False, False)) == 6  # neither dW of the first nor dx into it
    assert (
        num_products((False, "kernel", False)) == 7
    )  # dx must travel on, and bias needs no product
    assert num_products((True, True, False)) == 4  # nothing before the head
    assert num_products((False, False, "kernel")) == 7
    assert num_products((True, True, True)) == 3


def test_frozen_leaves_stay_and_have_no_gradient_and_no_optimizer_state():
    model, batch = three((True, "bias", False)), vectors(8)
    engine = jp.initialize(
        model, mesh=jp.make_mesh(pipe=2), optimizer=optax.adamw(0.1), num_microbatches=4
    )
    state = engine.init(KEY, batch)
    before = engine.logical(state.params)
    _, grads = engine.value_and_grad(state.params, batch)
    grads, plain = engine.logical(grads), jax.grad(model.loss)(before, batch)
    assert grads["00_Dense"] == dict(kernel=None, bias=None)
    assert grads["01_Dense"]["bias"] is None
    np.testing.assert_allclose(
        grads["01_Dense"]["kernel"], plain["01_Dense"]["kernel"], rtol=1e-5, atol=1e-7
    )
    assert state.opt_state is not None
    moments = engine.logical(state.opt_state)[0].mu
    assert jax.tree.structure(moments) == jax.tree.structure(grads)
    state, _ = engine.train_batch(state, batch)
    after = engine.logical(state.params)
    same(after["00_Dense"], before["00_Dense"])
    same(after["01_Dense"]["bias"], before["01_Dense"]["bias"])
    for moved in (after["01_Dense"]["kernel"] - before["01_Dense"]["kernel"],):
        assert np.all(np.abs(moved) > 1e-3)


def test_a_model_that_is_wholly_frozen_still_has_a_loss():
    batch, model = vectors(4), three((True, True, True))
    engine = jp.initialize(model, mesh=jp.make_mesh(pipe=2), num_microbatches=2)
    state = engine.init(KEY, batch)
    loss, grads = engine.value_and_grad(state.params, batch)
    np.testing.assert_allclose(loss, model.loss(engine.logical(state.params), batch), rtol=1e-6)
    assert not jax.tree.leaves(grads)


class Shift(nn.Module):
    """Rolls its features by an integer parameter."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        by = self.param("by", lambda key: jnp.int32(3))
        scale = self.param("scale", nn.initializers.ones, ())
        return scale * jnp.roll(x, by, axis=-1)


def test_integer_parameters_are_frozen():
    layers = [jp.LayerSpec(Shift), jp.LayerSpec(nn.Dense, 3)]
    batch, model = vectors(4), jp.PipelineModule(layers, mean_loss)
    engine = jp.initialize(
        model, mesh=jp.make_mesh(pipe=2), optimizer=optax.sgd(0.1), num_microbatches=2
    )
    state = engine.init(KEY, batch)
    _, grads = engine.value_and_grad(state.params, batch)
    assert engine.logical(grads)["00_Shift"]["by"] is None
    state, _ = engine.train_batch(state, batch)
    after = engine.logical(state.params)["00_Shift"]
    assert after["by"] == 3 and after["by"].dtype == np.int32 and after["scale"] != 1
