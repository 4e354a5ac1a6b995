"""The test that counts: pipelined loss and gradients are those of the unsplit model.

Bubbles hold NaN throughout: whatever read one would show it.
"""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import pytest
from covering import covering
from zoo import MODELS, batch_for, largest_error, linen, of_nnx, vectors

import jaxpipe as jp

SCHEDULES = ("gpipe", "1f1b", "1f1b-eager")
REMATS = ("none", "full", 1)


class Case(NamedTuple):
    ranks: int
    microbatches: str
    schedule: str
    model: str
    data: int
    remat: Any

    @property
    def num_microbatches(self) -> int:
        s = self.ranks
        named = {"S-1": max(s - 1, 1), "S": s, "2S+1": 2 * s + 1}
        return named.get(self.microbatches) or int(self.microbatches)


def every_case() -> list[Case]:
    """All that fit on eight devices."""
    counts = ("1", "2", "3", "S-1", "S", "2S+1", "16")
    product = itertools.product((1, 2, 3, 4, 8), counts, SCHEDULES, MODELS, (1, 2), REMATS)
    return [case for case in itertools.starmap(Case, product) if case.ranks * case.data <= 8]


def sweeping_cases() -> list[Case]:
    """Every (ranks, microbatches, schedule), each with the next of the other settings in turn."""
    found: dict[tuple[Any, ...], list[Case]] = {}
    for case in every_case():
        found.setdefault(case[:3], []).append(case)
    return [cases[7 * i % len(cases)] for i, cases in enumerate(found.values())]


def check(case: Case) -> None:
    model = MODELS[case.model](max(3, case.ranks))
    batch = batch_for(case.model, 2 * case.data * case.num_microbatches)
    engine = jp.initialize(
        model,
        mesh=jp.make_mesh(pipe=case.ranks, data=case.data),
        schedule=case.schedule,
        num_microbatches=case.num_microbatches,
        remat=case.remat,
        fill=float("nan"),
    )
    state = engine.init(jax.random.key(0), batch)
    params = engine.logical(state.params)
    init = jax.jit(functools.partial(model.init, batch=batch))
    assert largest_error(params, init(jax.random.key(0))) < 1e-6
    loss, grads = engine.value_and_grad(state.params, batch)
    want_loss, want = jax.jit(jax.value_and_grad(model.loss))(params, batch)
    np.testing.assert_allclose(loss, want_loss, rtol=1e-6)
    assert largest_error(engine.logical(grads), want) < 1e-6


COVERING = covering(every_case())
# Every value of every setting; with this seed each schedule and remat, and data ranks, twice.
FEW = covering(every_case(), meeting=1, seed=8)


@pytest.mark.parametrize("case", FEW, ids=lambda c: "-".join(map(str, c)))
def test_gradients_equal_the_unsplit_models(case: Case):
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", COVERING, ids=lambda c: "-".join(map(str, c)))
def test_gradients_equal_the_unsplit_models_where_any_two_settings_meet(case: Case):
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", sweeping_cases(), ids=lambda c: "-".join(map(str, c)))
def test_gradients_equal_the_unsplit_models_for_every_schedule(case: Case):
    check(case)


@pytest.mark.parametrize("chosen", [FEW, COVERING], ids=["few", "covering"])
def test_every_value_occurs(chosen: list[Case]):
    seen = {(i, value) for case in chosen for i, value in enumerate(case)}
    assert seen == {(i, value) for case in every_case() for i, value in enumerate(case)}


@functools.cache
def drawn(make: Any) -> Any:
    """Parameters of three layers with dropout."""
    return jax.jit(functools.partial(make(2, 0.5).init, batch=vectors(12)))(jax.random.key(0))


@functools.cache
def gradients(schedule: str, ranks: int, make: Any) -> Any:
    """(loss, gradients) of three layers with dropout."""
    batch, model = vectors(12), make(2, 0.5)
    mesh = jp.make_mesh(pipe=ranks)
    engine = jp.initialize(model, mesh=mesh, schedule=schedule, num_microbatches=6)
    engine.partition(batch)
    params = engine.place(drawn(make))
    loss, grads = engine.value_and_grad(params, batch, jax.random.key(1))
    return jax.tree.map(np.asarray, (loss, engine.logical(grads)))


def test_schedules_differ_in_no_bit():
    want = gradients("gpipe", 3, linen)
    for schedule in ("1f1b", "1f1b-eager"):
        jax.tree.map(np.testing.assert_array_equal, gradients(schedule, 3, linen), want)


# That of Flax's layers is also compared with the plain model's, below.
@pytest.mark.parametrize("make", [of_nnx, pytest.param(linen, marks=pytest.mark.slow)])
def test_dropout_does_not_depend_on_the_number_of_stages(make: Any):
    (one, grads), *others = [gradients("1f1b", ranks, make) for ranks in (1, 3)]
    for loss, other in others:
        np.testing.assert_allclose(loss, one, rtol=1e-6)
        assert largest_error(other, grads) < 1e-6
    model, batch = make(2, 0.5), vectors(12)
    kept = jax.jit(model.loss)(drawn(make), batch)
    assert abs(float(one - kept)) > 1e-3  # something was dropped


def test_dropout_is_that_of_the_plain_model_and_of_any_mesh():
    batch, model, key = vectors(16), linen(2, 0.5), jax.random.key(3)
    losses, params = [], drawn(linen)
    for data, num_microbatches in ((1, 8), (2, 4)):
        mesh = jp.make_mesh(pipe=2, data=data)
        engine = jp.initialize(model, mesh=mesh, num_microbatches=num_microbatches)
        engine.partition(batch)
        losses.append(engine.value_and_grad(engine.place(params), batch, key)[0])
    plain = jax.jit(functools.partial(model.loss, train=True, num_microbatches=8))
    want = plain(params, batch, key=key)
    np.testing.assert_allclose(losses, [want] * 2, rtol=1e-6)


SLOW_REMATS = [2, jax.checkpoint_policies.dots_saveable]


@pytest.mark.parametrize(
    "remat", ["full", *[pytest.param(remat, marks=pytest.mark.slow) for remat in SLOW_REMATS]]
)
def test_dropout_is_the_same_when_recomputed(remat: Any):
    batch, found = vectors(8), []
    for how in ("none", remat):
        mesh = jp.make_mesh(pipe=2)
        engine = jp.initialize(linen(2, 0.5), mesh=mesh, num_microbatches=4, remat=how)
        engine.partition(batch)
        loss, grads = engine.value_and_grad(engine.place(drawn(linen)), batch, jax.random.key(3))
        found.append((loss, engine.logical(grads)))
    assert largest_error(found[0], found[1]) < 1e-6


SLOW_MODELS = [pytest.param(name, marks=pytest.mark.slow) for name in ("unlike", "linen")]


@pytest.mark.parametrize("name", ["tied", *SLOW_MODELS])
def test_ten_steps_end_in_the_same_parameters(name: str):
    model, batch = MODELS[name](3), batch_for(name, 16)
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1, momentum=0.9))
    engine = jp.initialize(
        model, mesh=jp.make_mesh(pipe=4, data=2), optimizer=optimizer, num_microbatches=4,
        fill=float("nan"),
    )  # fmt: skip
    state = engine.init(jax.random.key(0), batch)
    params = jax.tree.map(jax.numpy.asarray, engine.logical(state.params))

    @jax.jit
    def step(params: Any, opt_state: Any) -> Any:
        loss, grads = jax.value_and_grad(model.loss)(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss, optax.tree.norm(grads)

    opt_state = optimizer.init(params)
    for _ in range(10):
        state, metrics = engine.train_batch(state, batch)
        params, opt_state, loss, norm = step(params, opt_state)
        np.testing.assert_allclose(metrics["loss"], loss, rtol=2e-6)
        np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    assert int(state.step) == 10
    assert largest_error(engine.logical(state.params), params) < 1e-5
    np.testing.assert_allclose(
        engine.eval_batch(state, batch)["loss"], jax.jit(model.loss)(params, batch), rtol=1e-5
    )
    want = jax.jit(model.apply)(params, batch)
    assert largest_error(engine.predict(state, batch), want) < 1e-5
