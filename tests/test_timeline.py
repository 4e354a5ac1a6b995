"""Measured timelines: every action once, in the order of its needs, on its own rank's time."""

import itertools

import jax
import optax
import pytest
from zoo import gentle, vectors

import jaxpipe as jp
from jaxpipe.schedules import Op, needs
from jaxpipe.schedules.pictures.bars import bars_of_times

SCHEDULES = ("1f1b", "zb-h1", "zb-v", "1f1b-eager")


@pytest.mark.parametrize("data", [1, 2])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_measured_step_shows_every_action_in_order(name: str, data: int):
    model, batch = gentle(6), vectors(8)
    engine = jp.initialize(
        model, mesh=jp.make_mesh(pipe=2, data=data), optimizer=optax.sgd(0.1), schedule=name,
        num_microbatches=4,
    )  # fmt: skip
    state = engine.init(jax.random.key(0), batch)
    schedule = engine.schedule
    state, metrics, timeline = engine.timeline(state, batch)
    assert int(state.step) == 1 and float(metrics["loss"]) > 0
    assert set(timeline.starts) == set(timeline.ends) == set(schedule.ticks())
    assert min(timeline.starts.values()) == 0 < timeline.makespan == max(timeline.ends.values())
    assert 0 < timeline.bubble_fraction < 1
    fused = not any(a.op == Op.I for a in schedule.ticks())
    last = schedule.num_stages - 1
    for action, start in timeline.starts.items():
        assert timeline.ends[action] >= start
        for group in needs(action, schedule.num_stages):
            need = next(a for a in group if a in timeline.ends)
            # A fused F is drawn where its B begins, though its input was there in time.
            assert timeline.ends[need] <= start + 1e-4 or (fused and need.stage == last)
    for row in schedule.rows:
        times = [(timeline.starts[a], timeline.ends[a]) for a in row if a]
        assert all(end <= start + 1e-4 for (_, end), (start, _) in itertools.pairwise(times))
    assert len(bars_of_times(schedule, timeline)) == len(schedule.ticks())
