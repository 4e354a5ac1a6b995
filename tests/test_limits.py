"""Steps whose loss or gradients leap up, and which are to change nothing."""

import math
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from pretended import a_config, after, lines_of, losses_of, trained

import jaxpipe as jp
from jaxpipe.errors import Diverged
from jaxpipe.metrics.history import read_history
from jaxpipe.metrics.leaps import Leaps


@pytest.fixture(scope="module")
def engine() -> jp.Engine:
    layers = [jp.LayerSpec(nn.Embed, 256, 8), jp.LayerSpec(nn.Dense, 256)]
    ranges = dict(inputs=(0, 256), targets=(0, 256))
    model = jp.PipelineModule(layers, jp.losses.cross_entropy, id_ranges=ranges)
    mesh = jp.make_mesh(pipe=2)
    return jp.initialize(model, mesh=mesh, optimizer=optax.adam(1e-3), num_microbatches=2)


def config_of(tmp_path, name, **trainer: Any):
    long = dict(steps=40, eval_interval=99, checkpoint_interval=99, most_skipped=5)
    config = a_config(tmp_path, name, spike_action="skip", **(long | trainer))
    return replace(config, data=replace(config.data, sequence_length=5))


def recorded(engine: jp.Engine) -> tuple[jp.Engine, dict[int, Any]]:
    """The engine, and the parameters after each step."""
    seen: dict[int, Any] = {}

    def train_batch(state, batch, *limits):
        state, metrics = engine.train_batch(state, batch, *limits)
        seen[int(state.step)] = jax.tree.map(np.asarray, (state.params, state.opt_state))
        return state, metrics

    return engine._replace(train_batch=train_batch), seen


def equal(one: Any, two: Any) -> bool:
    return all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(two)))


@pytest.mark.parametrize("option", [pytest.param("spike", marks=pytest.mark.slow), "norm_spike"])
def test_what_leaps_up_changes_nothing_and_a_run_that_is_cut_skips_the_same(
    tmp_path, text, engine, option
):
    factor = {"spike": 1.001, "norm_spike": 1.1}[option]  # so little that usual noise is a leap
    config = config_of(tmp_path, "whole", **{option: factor})
    own, seen = recorded(engine)
    outcome, printed = trained(config, own)
    assert (outcome.ending, outcome.step) == ("finished", 40)
    skipped = [line["step"] for line in lines_of(config) if line.get("skipped")]
    number = {"spike": "loss", "norm_spike": "grad_norm"}[option]
    numbers = {line["step"]: line[number] for line in lines_of(config) if number in line}
    expected = [
        step
        for step in range(22, 41)
        if numbers[step]
        > np.float32(factor * np.median([numbers[before] for before in range(step - 21, step - 1)]))
    ]
    assert skipped == expected and 1 <= len(skipped) < 15
    for step in range(2, 41):
        assert equal(seen[step], seen[step - 1]) == (step in skipped)
    shown = number.replace("_", " ")
    for step in skipped:
        assert f"SPIKE: the {shown} of step {step} is " in printed
    assert printed.count("; it changed nothing") == len(skipped)
    history = read_history(tmp_path / "runs" / "whole" / "history.jsonl")
    assert [event["step"] for event in history if event["event"] == "spike"] == skipped
    # What has been read when the run is cut is more than what is known to a step that is next.
    cut = config_of(tmp_path, "cut", **{option: factor})
    own, again = recorded(engine)
    assert trained(cut, own, should_stop=after(skipped[0] - 1))[0].step == skipped[0] - 1
    trained(cut, own)
    assert losses_of(cut) == losses_of(config)
    assert all(equal(again[step], seen[step]) for step in seen)


def test_leaps_in_a_row_end_the_run(tmp_path, text, engine):
    def train_batch(state, batch, limits):
        low = {name: limit * (1 if int(state.step) < 30 else 0) for name, limit in limits.items()}
        return engine.train_batch(state, batch, low)

    config = config_of(tmp_path, "run", spike=3.0)
    with pytest.raises(Diverged, match=r"step_00000030") as caught:
        trained(config, engine._replace(train_batch=train_batch))
    assert caught.value.skipped == 6


def test_a_limit_does_not_depend_on_whether_the_step_before_has_been_read():
    numbers = [float(n) for n in range(1, 31)]
    late, early = Leaps("loss", 2.0), Leaps("loss", 2.0)
    early.found(1, numbers[0])
    for step in range(3, 31):
        late.found(step - 2, numbers[step - 3])
        early.found(step - 1, numbers[step - 2])
        resumed = Leaps("loss", 2.0, early.last)
        assert late.limit(step) == early.limit(step) == resumed.limit(step)
        assert math.isinf(late.limit(step)) == (step < 22)
    assert late.limit(30) == 2 * np.median(numbers[8:28])


def test_numbers_that_are_not_finite_are_left_out_and_too_few_say_nothing():
    leaps = Leaps("loss", 2.0, [1.0] * 11 + [None] * 9 + [5.0])
    assert leaps.limit(22) == 2.0
    assert leaps.last == [1.0] * 11 + [None] * 9 + [5.0]
    assert Leaps("loss", 2.0, [1.0] * 10 + [None] * 10 + [5.0]).limit(22) == math.inf
    assert leaps.found(22, math.nan) is None and leaps.last[-2:] == [5.0, None]
