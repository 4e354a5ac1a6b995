"""Every axis at once: pipe x data x tensor, ZeRO and schedules change no number of a run.

The reference is the whole model on one device, in plain JAX. Bubbles hold NaN, and the weights of
tokens differ over microbatches and data ranks.
"""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import pytest
from covering import covering
from zoo import largest_error

import jaxpipe as jp
from jaxpipe import nn
from jaxpipe.models import GPTConfig, LlamaConfig, gpt, llama

VOCAB, TIME, MICROBATCHES = 16, 8, 3
SIZES: Any = dict(vocab_size=VOCAB, width=16, num_heads=4)


def of_gpt(**settings: Any) -> Any:
    return lambda blocks: gpt(
        GPTConfig(**SIZES, num_layers=blocks, sequence_length=TIME, **settings)
    )


def of_llama(**settings: Any) -> Any:
    return lambda blocks: llama(
        LlamaConfig(**SIZES, num_layers=blocks, hidden=24, num_kv_heads=4, **settings)
    )


NETWORKS = {
    "gpt": of_gpt(),
    "gpt tied": of_gpt(tied=True),
    "gpt cut in time": of_gpt(sequence_parallel=True),
    "llama": of_llama(),
    "llama tied, cut in time": of_llama(tied=True, sequence_parallel=True),
}
ZEROS = {
    "0": jp.Zero(0),
    "1": jp.Zero(1),
    "2": jp.Zero(2),
    "2 per use": jp.Zero(2, per="use"),
    "3": jp.Zero(3),
    "3 per use": jp.Zero(3, per="use"),
}


class Case(NamedTuple):
    sizes: tuple[int, int, int]  # pipe, data, tensor
    zero: str
    schedule: str
    network: str


def every_case() -> list[Case]:
    """All that use two axes or more of eight devices."""
    sizes = [s for s in itertools.product((1, 2, 4), repeat=3) if 4 <= np.prod(s) <= 8]
    schedules = ("1f1b", "interleaved", "zb-h1")
    product = itertools.product(sizes, ZEROS, schedules, NETWORKS)
    return [
        case for case in itertools.starmap(Case, product) if case.sizes[1] > 1 or case[1] == "0"
    ]


COVERING = covering(every_case())
# Both networks, with and without tied and cut layers; two stages of ZeRO, per step and per use.
USUAL = [
    Case((2, 2, 2), "2 per use", "interleaved", "gpt"),
    Case((2, 2, 2), "3", "zb-h1", "llama tied, cut in time"),
]
# With these, enough that each value of each setting occurs.
MORE = [
    Case((2, 2, 2), "0", "1f1b", "gpt"),
    Case((2, 2, 2), "1", "zb-h1", "gpt tied"),
    Case((1, 2, 4), "2", "1f1b", "llama"),
    Case((2, 2, 2), "3 per use", "1f1b", "gpt cut in time"),
]
FEW = [*USUAL, *MORE]
SLOW = [pytest.param(case, marks=pytest.mark.slow) for case in MORE]
pytestmark = pytest.mark.timeout(900)  # five programs for eight devices each


def tokens(rows: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, VOCAB, (rows, TIME + 1), dtype=np.int32)
    weights = (rng.uniform(size=(rows, TIME)) ** 3).astype(np.float32)
    return dict(inputs=drawn[:, :-1], targets=drawn[:, 1:], weights=weights)


def check(case: Case) -> None:
    pipe, data, tensor = case.sizes
    stages = pipe * (2 if case.schedule == "interleaved" else 1)
    model = jp.PipelineModule(
        NETWORKS[case.network](max(min(stages, 2), stages - 2)), nn.cross_entropy
    )
    batch = tokens(2 * data * MICROBATCHES)
    optimizer = optax.chain(
        optax.clip_by_global_norm(0.5), optax.adamw(1e-3, eps=1e-3, weight_decay=0.1)
    )
    engine = jp.initialize(
        model, mesh=jp.make_mesh(pipe=pipe, data=data, tensor=tensor), optimizer=optimizer,
        schedule=case.schedule, num_microbatches=MICROBATCHES, zero=ZEROS[case.zero],
        fill=float("nan"),
    )  # fmt: skip
    state = engine.init(jax.random.key(0), batch)
    params = engine.logical(state.params)
    init = jax.jit(functools.partial(model.init, batch=batch))
    assert largest_error(params, init(jax.random.key(0))) < 1e-6
    loss, grads = engine.value_and_grad(state.params, batch)
    want_loss, want = jax.jit(jax.value_and_grad(model.loss))(params, batch)
    np.testing.assert_allclose(loss, want_loss, rtol=1e-6)
    assert largest_error(engine.logical(grads), want) < 1e-6

    @jax.jit
    def step(params: Any, opt_state: Any) -> Any:
        loss, grads = jax.value_and_grad(model.loss)(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss, optax.tree.norm(grads)

    params = jax.tree.map(jax.numpy.asarray, params)
    opt_state = optimizer.init(params)
    for _ in range(10):
        state, metrics = engine.train_batch(state, batch)
        params, opt_state, loss, norm = step(params, opt_state)
        np.testing.assert_allclose(metrics["loss"], loss, rtol=2e-6)
        np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    assert largest_error(engine.logical(state.params), params) < 1e-5
    moments = state.opt_state
    assert moments is not None
    assert largest_error(engine.logical(moments), opt_state) < 1e-5
    loss, outputs = jax.jit(lambda p: (model.loss(p, batch), model.apply(p, batch)))(params)
    np.testing.assert_allclose(engine.eval_batch(state, batch)["loss"], loss, rtol=1e-5)
    assert largest_error(engine.predict(state, batch), outputs) < 1e-5


@pytest.mark.parametrize("case", [*USUAL, *SLOW], ids=lambda c: "-".join(map(str, c)))
def test_runs_are_those_of_one_device(case: Case):
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", COVERING, ids=lambda c: "-".join(map(str, c)))
def test_runs_are_those_of_one_device_on_any_mesh(case: Case):
    check(case)


def test_the_few_cases_have_every_value():
    for i in (1, 2, 3):
        assert {case[i] for case in FEW} == {case[i] for case in every_case()}
