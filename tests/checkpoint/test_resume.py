"""Training in two parts is training in one, to the bit, wherever it is cut."""

import jax
import numpy as np
import optax
import pytest
from zoo import largest_error, linen, vectors

import jaxpipe as jp
from jaxpipe.checkpoint import Checkpoints

STEPS = 6
RATE = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 2, STEPS)


def an_engine(pipe: int, data: int) -> jp.Engine:
    """Dropout goes by microbatch: the same eight in all."""
    mesh = jp.make_mesh(pipe=pipe, data=data)
    return jp.initialize(
        linen(5, 0.3), mesh=mesh, num_microbatches=8 // data, optimizer=optax.adamw(RATE)
    )


def batch(step: int) -> dict[str, np.ndarray]:
    return vectors(16, seed=step)


def trained(engine: jp.Engine, state: jp.TrainState, first: int, last: int) -> jp.TrainState:
    for step in range(first, last + 1):
        state, _ = engine.train_batch(state, batch(step))
    return state


def plain(engine: jp.Engine, state: jp.TrainState):
    assert state.opt_state is not None
    trees = engine.logical(state.params), engine.logical(state.opt_state), state.step, state.key
    return jax.tree.map(np.array, trees)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of all steps, saved after each, and how it ended."""
    folder, engine = tmp_path_factory.mktemp("whole"), an_engine(pipe=4, data=2)
    state = engine.init(jax.random.key(0), batch(1))
    with Checkpoints(folder, keep=STEPS) as checkpoints:
        for step in range(1, STEPS + 1):
            state = trained(engine, state, step, step)
            checkpoints.save(step, state)
    return folder, plain(engine, state)


def test_a_run_that_is_cut_ends_as_one_that_is_not(whole):
    folder, want = whole
    engine = an_engine(pipe=4, data=2)  # has compiled nothing yet
    like = engine.abstract_state(batch(1))
    for cut in range(1, STEPS):
        with Checkpoints(folder) as checkpoints:
            state = checkpoints.restore(cut, like)
        found = plain(engine, trained(engine, state, cut + 1, STEPS))
        jax.tree.map(np.testing.assert_array_equal, found, want)


def test_a_run_that_goes_on_elsewhere_ends_nearly_so(whole):
    folder, want = whole
    engine = an_engine(pipe=2, data=1)
    with Checkpoints(folder) as checkpoints:
        state = checkpoints.restore(3, engine.abstract_state(batch(1)))
    found = plain(engine, trained(engine, state, 4, STEPS))
    assert largest_error(found[0], want[0]) < 1e-5


def test_a_loss_scale_and_skipped_steps_are_kept(tmp_path):
    scale = jp.LossScale(initial=2.0**40, largest=2.0**40)
    engine = jp.initialize(
        linen(3), mesh=jp.make_mesh(pipe=2), num_microbatches=2, optimizer=optax.sgd(0.1),
        loss_scale=scale,
    )  # fmt: skip
    data = {name: x * 1e20 if name == "inputs" else x for name, x in vectors(8).items()}
    state = engine.init(jax.random.key(0), data)
    state, metrics = engine.train_batch(state, data)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        found = checkpoints.restore(1, engine.abstract_state(data))
    assert int(found.skipped) == int(metrics["skipped"]) == 1
    assert found.loss_scale is not None and float(found.loss_scale.scale) == 2.0**39
