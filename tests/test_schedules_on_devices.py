"""Every schedule through the loop: gradients are the unsplit model's, slots are the simulator's."""

import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from zoo import gentle, largest_error, vectors

import jaxpipe as jp
from jaxpipe.executor.program import FUSED
from jaxpipe.schedules import NAMES, by_name, simulate
from jaxpipe.schedules.simulate import held

CHUNKED = ("interleaved", "looped-bfs", "interleaved-zb")
FAMILIES = [(name, None) for name in NAMES if name not in CHUNKED]
FAMILIES += list(itertools.product(CHUNKED, (1, 2, 3)))


class Case(NamedTuple):
    name: str
    chunks: int | None
    ranks: int
    microbatches: int

    def __str__(self) -> str:
        return f"{self.name}-{self.chunks or 'own'}-{self.ranks}x{self.microbatches}"


def every_case() -> list[Case]:
    product = itertools.product(FAMILIES, range(1, 5), range(1, 10))
    return [Case(*family, ranks, m) for family, ranks, m in product]


SOME = [
    Case("gpipe", None, 1, 9),
    Case("1f1b", None, 3, 1),
    Case("1f1b-eager", None, 4, 8),
    Case("zb-h1", None, 2, 2),
    Case("zb-h2", None, 3, 6),
    Case("zb-v", None, 2, 5),
    Case("v-half", None, 2, 4),
    Case("v-min", None, 3, 7),
    Case("1f1b-v", None, 2, 4),
    Case("dualpipe-v", None, 2, 5),
    Case("interleaved", 2, 2, 6),
    Case("looped-bfs", 1, 1, 3),
    Case("looped-bfs", 3, 2, 3),
    Case("interleaved-zb", 2, 2, 5),
]


@functools.cache
def unsplit(num_layers: int, microbatches: int) -> Any:
    """A model of layers that all train, a batch and parameters for it, and its gradients."""
    model, batch = gentle(num_layers), vectors(microbatches)
    rng = np.random.default_rng(0)
    # Drawn here, which compiles nothing; of the sizes that the model itself would draw.
    draw = lambda leaf: rng.normal(0, leaf.shape[0] ** -0.5, leaf.shape).astype(leaf.dtype)
    params = jax.tree.map(
        lambda leaf: draw(leaf) if leaf.ndim > 1 else 0.1 * draw(leaf),
        jax.eval_shape(functools.partial(model.init, batch=batch), jax.random.key(0)),
    )
    return model, batch, params, jax.jit(jax.value_and_grad(model.loss))(params, batch)


def check(case: Case) -> None:
    schedule = by_name(case.name, case.ranks, case.microbatches, num_chunks=case.chunks)
    model, batch, logical, (want_loss, want) = unsplit(schedule.num_stages + 1, case.microbatches)
    engine = jp.initialize(
        model, mesh=jp.make_mesh(pipe=case.ranks), schedule=case.name, num_chunks=case.chunks,
        num_microbatches=case.microbatches, fill=float("nan"),
    )  # fmt: skip
    assert engine.schedule == schedule
    engine.partition(batch)
    params = engine.place(logical)
    loss, grads = engine.value_and_grad(params, batch)
    np.testing.assert_allclose(loss, want_loss, rtol=1e-6)
    assert largest_error(engine.logical(grads), want) < 1e-6
    program = engine.program(batch)
    assert program.held == simulate(schedule).held
    if FUSED in dict(program.branches):  # the last stage keeps nothing
        last = schedule.num_stages - 1
        drop = lambda row: tuple(a if a and a.stage != last else None for a in row)
        schedule = dataclasses.replace(schedule, rows=tuple(map(drop, schedule.rows)))
    assert program.num_rows == max(held(schedule))


@pytest.mark.parametrize("case", SOME, ids=str)
def test_gradients_of_each_family(case: Case):
    check(case)


def test_some_cases_show_every_family_and_count():
    some, every = ([set(x) for x in zip(*cases, strict=True)] for cases in (SOME, every_case()))
    assert some == every


@pytest.mark.slow
@pytest.mark.parametrize("case", every_case(), ids=str)
def test_gradients_of_every_schedule_on_any_number_of_ranks_and_microbatches(case: Case):
    check(case)
