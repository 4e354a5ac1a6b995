"""Optimizers and learning rates by name: they are optax's, wherever parameters live."""

import math
from typing import Any

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from zoo import Gentle, largest_error, vectors, weighted_loss

import jaxpipe as jp
from jaxpipe.config import OptimizerConfig
from jaxpipe.config.optimizer import OPTIMIZERS, SCHEDULES
from jaxpipe.learning_rate import learning_rate
from jaxpipe.optimizers import build_optimizer


def matrices(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


EXPECTED: dict[str, Any] = dict(
    adamw=lambda rate: optax.adamw(rate, 0.9, 0.95, weight_decay=0.1, mask=matrices),
    adam=lambda rate: optax.adam(rate),
    sgd=lambda rate: optax.sgd(rate, 0.9),
    lion=lambda rate: optax.lion(rate, weight_decay=0.1, mask=matrices),
    adafactor=lambda rate: optax.adafactor(rate),
    lamb=lambda rate: optax.lamb(rate, weight_decay=0.1, mask=matrices),
    lars=lambda rate: optax.lars(rate, 1e-4, matrices, trust_ratio_mask=matrices),
)


@pytest.mark.parametrize("name", EXPECTED)
def test_with_their_usual_settings_they_are_those_of_optax(name: str):
    rng = np.random.default_rng(0)
    draw = lambda: {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in (("kernel", (3, 4)), ("bias", (4,)))
    }
    config = OptimizerConfig(name=name, learning_rate=0.1, warmup_steps=2, clip_norm=None)
    got, want = build_optimizer(config, 9), EXPECTED[name](learning_rate(config, 9))
    params = draw()
    states = [got.init(params), want.init(params)]
    for _ in range(2):
        grads, found = draw(), []
        for i, optimizer in enumerate((got, want)):
            updates, states[i] = optimizer.update(grads, states[i], params)
            found.append(updates)
        assert largest_error(*found) == 0


def test_muon_is_for_the_matrices_of_blocks():
    leaf = lambda *shape: np.ones(shape, np.float32)
    params = {
        "00_Embed": dict(token=leaf(6, 4)),
        "01_Block": dict(up=dict(kernel=leaf(4, 8), bias=leaf(8))),
    }
    config = OptimizerConfig(
        name="muon", learning_rate=1.0, schedule="constant", warmup_steps=0, nesterov=False
    )
    optimizer = build_optimizer(config, 9)
    updates: Any = optimizer.update(params, optimizer.init(params), params)[0]
    # An update of AdamW's size (arXiv:2502.16982): orthogonal, times 0.2 sqrt(8); and the decay.
    step = np.linalg.norm(updates["01_Block"]["up"]["kernel"] + 0.1) / (0.2 * math.sqrt(8))
    assert 0.6 < step < 1.3  # of rank 1; Newton-Schulz takes singular values near 1
    np.testing.assert_allclose(updates["00_Embed"]["token"], -1, atol=1e-3)  # AdamW's first
    np.testing.assert_allclose(updates["01_Block"]["up"]["bias"], -1, atol=1e-3)


def test_each_gives_what_it_gives_without_a_pipeline_and_zero():
    """All of them at once, each on a block of its own, on two ranks and two data ranks."""
    names = list(OPTIMIZERS)
    blocks = [jp.LayerSpec(Gentle, name=f"{i:02d}_Block") for i in range(len(names))]
    model = jp.PipelineModule([*blocks, jp.LayerSpec(linen.Dense, 3)], weighted_loss)
    batch = vectors(8)
    made = {}
    for name in names:
        epsilon = 1e-3 if "epsilon" in OPTIMIZERS[name] else None
        rate = 1.0 if name == "lars" else 0.01
        made[name] = OptimizerConfig(name=name, learning_rate=rate, warmup_steps=1, epsilon=epsilon)
    owner = lambda layer: names[int(layer[:2])] if layer.endswith("Block") else "sgd"
    labels = lambda params: {
        layer: jax.tree.map(lambda _, layer=layer: owner(layer), tree)
        for layer, tree in params.items()
    }
    optimizer = optax.multi_transform(
        {name: build_optimizer(config, 5) for name, config in made.items()}, labels
    )
    engine = jp.initialize(
        model, mesh=jp.make_mesh(pipe=2, data=2), optimizer=optimizer,
        num_microbatches=2, zero=2,
    )  # fmt: skip
    state = engine.init(jax.random.key(0), batch)
    start = engine.logical(state.params)
    params = jax.tree.map(jnp.asarray, start)
    opt_state = optimizer.init(params)

    @jax.jit
    def step(params: Any, opt_state: Any) -> Any:
        grads = jax.grad(model.loss)(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    for _ in range(3):
        state, _ = engine.train_batch(state, batch)
        params, opt_state = step(params, opt_state)
    found = engine.logical(state.params)
    for layer, tree in found.items():
        assert largest_error(tree, params[layer]) < 1e-5, owner(layer)
        assert largest_error(tree, start[layer]) > 1e-4, owner(layer)


def test_the_learning_rate_rises_and_falls():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=3, final_fraction=0.2)
    rate: Any = learning_rate(config, 13)
    rates = [float(rate(step)) for step in range(14)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[8] == pytest.approx(0.2 + 0.8 / 2)  # half way down
    assert rates[13] == pytest.approx(0.2)
    assert rates[3:] == sorted(rates[3:], reverse=True)


@pytest.mark.parametrize(("warmup", "steps"), [(0, 5), (5, 5), (0, 1)])
def test_the_learning_rate_exists_for_short_runs(warmup, steps):
    rate: Any = learning_rate(OptimizerConfig(learning_rate=1.0, warmup_steps=warmup), steps)
    assert all(0 < float(rate(step)) <= 1 for step in range(steps))


def test_the_optimizer_clips_and_decays_matrices_only():
    params = {"matrix": jnp.full((2, 2), 10.0), "bias": jnp.full(2, 10.0)}
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=0, weight_decay=0.5)
    optimizer = build_optimizer(config, 10)
    updates, _ = optimizer.update(
        jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params
    )
    moved: Any = optax.apply_updates(params, updates)
    np.testing.assert_allclose(moved["matrix"], 10 - 0.1 * 0.5 * 10, rtol=1e-6)
    np.testing.assert_array_equal(moved["bias"], params["bias"])
    for clip, expected in [(1.0, 1 / math.sqrt(6)), (None, 100.0)]:
        optimizer = build_optimizer(OptimizerConfig(clip_norm=clip, beta1=0.0), 10)
        grads = jax.tree.map(lambda leaf: jnp.full_like(leaf, 100.0), params)
        _, state = optimizer.update(grads, optimizer.init(params), params)
        mean = optax.tree.get(state, "mu")["bias"]
        np.testing.assert_allclose(mean, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1.0, 1.0, 1.0, 1.0]),
        ("linear", [1.0, 0.775, 0.55, 0.1]),
        ("cosine", [1.0, 0.8682, 0.55, 0.1]),
        ("wsd", [1.0, 1.0, 1.0, 0.0]),
        ("inverse-sqrt", [1.0, 4 / 5, 2 / 3, 0.5]),
    ],
)
def test_each_schedule_goes_its_way(schedule: str, expected: list[float]):
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=16, schedule=schedule)
    rate: Any = learning_rate(config, 64)
    steps = [16, 28, 40, 64] if schedule != "inverse-sqrt" else [16, 25, 36, 64]
    assert [float(rate(step)) for step in steps] == pytest.approx(expected, abs=1e-4)
    assert float(rate(7)) == pytest.approx(8 / 17)
    rates = np.asarray(jax.vmap(rate)(jnp.arange(65)))
    assert np.all(np.diff(rates[16:]) <= 1e-6) and set(SCHEDULES) >= {schedule}


def test_wsd_falls_as_a_root_at_the_end():
    config = OptimizerConfig(
        learning_rate=2.0, warmup_steps=5, schedule="wsd", decay_fraction=0.4, final_fraction=0.1
    )
    rate: Any = learning_rate(config, 100)
    assert [float(rate(step)) for step in (5, 60)] == [2.0, 2.0]
    assert float(rate(70)) == pytest.approx(2 * (1 - 0.9 * math.sqrt(0.25)))
    assert float(rate(100)) == pytest.approx(0.2)
