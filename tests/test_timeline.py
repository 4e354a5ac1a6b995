"""Measured timelines: every action once, in the order of its needs, on its own rank's time."""

import jax
import optax
import pytest
from zoo import gentle, vectors

import jaxpipe as jp
from jaxpipe.schedules import Op, needs
from jaxpipe.schedules.pictures.bars import bars_of_times


@pytest.mark.parametrize(
    ("name", "data"),
    [
        pytest.param("1f1b", 1, marks=pytest.mark.slow),
        ("zb-h1", 2),
        pytest.param("zb-v", 2, marks=pytest.mark.slow),
        ("1f1b-eager", 1),
    ],
)
def test_a_measured_step_shows_every_action_in_order(name: str, data: int):
    model, batch = gentle(4), vectors(8)
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
            # What an action made may be on its way while it still writes to its stash.
            assert timeline.starts[need] <= start or (fused and need.stage == last)
    for row in schedule.rows:
        starts = [timeline.starts[action] for action in row if action]
        assert starts == sorted(starts)
    assert len(bars_of_times(schedule, timeline)) == len(schedule.ticks())
