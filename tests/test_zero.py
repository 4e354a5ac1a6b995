"""ZeRO: what the data ranks share of a rank's state changes no number, and takes fewer bytes."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import pytest
from zoo import MODELS, batch_for, largest_error

import jaxpipe as jp

KINDS = {
    "1": jp.Zero(1),
    "2": jp.Zero(2),
    "2 per use": jp.Zero(2, per="use"),
    "3": jp.Zero(3),
    "3 per use": jp.Zero(3, per="use"),
}


class Case(NamedTuple):
    zero: str
    model: str
    pipe: int
    data: int
    schedule: str


CASES = [
    Case("1", "unlike", 2, 3, "zb-h1"),
    Case("3 per use", "dicts", 2, 2, "1f1b-eager"),
]
MORE = [
    Case("2 per use", "unlike", 2, 3, "zb-h1"),
    Case("3", "unlike", 2, 3, "zb-h1"),
    Case("3 per use", "unlike", 2, 3, "1f1b"),
    Case("1", "linen", 2, 2, "1f1b"),
    Case("1", "tied", 2, 4, "zb-h1"),
    Case("2", "unlike", 4, 2, "interleaved"),
    Case("2", "nnx", 1, 4, "gpipe"),
    Case("2 per use", "tied", 2, 2, "1f1b"),
    Case("3", "tied", 4, 2, "1f1b"),
    Case("3", "linen", 2, 4, "interleaved"),
    Case("3 per use", "linen", 2, 2, "zb-h1"),
    Case("3 per use", "tied", 4, 2, "interleaved"),
]
SLOW = [pytest.param(case, marks=pytest.mark.slow) for case in MORE]


@pytest.mark.parametrize("case", [*CASES, *SLOW], ids=lambda c: "-".join(map(str, c)))
def test_gradients_and_steps_are_those_of_the_unsplit_model(case: Case):
    depth = 8 if case.schedule == "interleaved" else case.pipe + 1
    model, batch = MODELS[case.model](depth), batch_for(case.model, 6 * case.data)
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1, momentum=0.9))
    engine = jp.initialize(
        model, mesh=jp.make_mesh(pipe=case.pipe, data=case.data), optimizer=optimizer,
        schedule=case.schedule, num_microbatches=3, zero=KINDS[case.zero], fill=float("nan"),
    )  # fmt: skip
    state = engine.init(jax.random.key(0), batch)
    params = engine.logical(state.params)
    init = jax.jit(functools.partial(model.init, batch=batch))
    assert largest_error(params, init(jax.random.key(0))) < 1e-6
    loss, grads = engine.value_and_grad(state.params, batch)
    want_loss, want = jax.jit(jax.value_and_grad(model.loss))(params, batch)
    np.testing.assert_allclose(loss, want_loss, rtol=1e-6)
    assert largest_error(engine.logical(grads), want) < 1e-6
    assert largest_error(engine.logical(engine.place(params)), params) == 0

    @jax.jit
    def step(params: Any, opt_state: Any) -> Any:
        grads = jax.grad(model.loss)(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, optax.tree.norm(grads)

    params = jax.tree.map(jax.numpy.asarray, params)
    opt_state = optimizer.init(params)
    for _ in range(3):
        state, metrics = engine.train_batch(state, batch)
        params, opt_state, norm = step(params, opt_state)
        np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    assert largest_error(engine.logical(state.params), params) < 1e-5
    want = jax.jit(model.apply)(params, batch)
    assert largest_error(engine.predict(state, batch), want) < 1e-5
