"""Training: the loop on a small pretended engine, and the whole program in its own process."""

import json
import os
import shutil
import signal
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from children import environment
from pretended import (
    LAYERS,
    a_config,
    after,
    lines_of,
    losses_of,
    pretended,
    saved_steps,
    trained,
)

from jaxpipe.checkpoint import Checkpoints
from jaxpipe.config import read
from jaxpipe.crashes import CrashLoop
from jaxpipe.data import TokenSamples
from jaxpipe.errors import ConfigError, Diverged
from jaxpipe.metrics.history import read_history
from jaxpipe.partition import partition
from jaxpipe.prepare import batches_of, corpus_of
from jaxpipe.schedules import forward_only
from jaxpipe.summary import StepRecord


def test_a_run_leaves_metrics_checkpoints_and_its_configuration(tmp_path, text):
    config = a_config(tmp_path)
    outcome, printed = trained(config)
    folder = tmp_path / "runs" / "run"
    assert (outcome.ending, outcome.step) == ("finished", 8)
    assert outcome.checkpoint == (folder / "checkpoints" / "step_00000008").absolute()
    assert saved_steps(config) == [6, 8]
    assert list(losses_of(config)) == [1, 2, 3, 4, 5, 6, 7, 8]
    held_out = {line["step"]: line for line in lines_of(config) if "held_out_loss" in line}
    assert list(held_out) == [3, 6, 8]
    assert held_out[8]["held_out_loss"] == outcome.held_out_loss
    assert held_out[8]["bigram_loss"] == outcome.bigram_loss
    assert len(list(folder.glob("events*"))) == 1
    shown = "\n\n".join((str(partition(LAYERS, 1, "uniform")), str(forward_only(1, 1))))
    assert f"{shown}\n\nmesh: pipe 1 x data 1 x" in printed
    assert "compiler options: an_option=True" in printed
    assert read(folder / "config.yaml").trainer == config.trainer


def test_the_held_out_loss_weighs_every_position_alike(tmp_path, text):
    outcome, _ = trained(a_config(tmp_path))
    assert outcome.checkpoint is not None
    with Checkpoints(outcome.checkpoint.parent) as checkpoints:
        like = {"step": jnp.int32(0), "total": jnp.float32(0)}
        total = float(checkpoints.restore(8, like)["total"])
    corpus = corpus_of(a_config(tmp_path))
    samples = TokenSamples(corpus.held_out, 16)
    places = np.linspace(0, len(samples) - 1, 8).astype(int)
    mean = np.mean([samples[int(place)]["inputs"] for place in places])
    assert outcome.held_out_loss == pytest.approx(mean + total, rel=1e-6)


def test_an_interrupted_run_goes_on_with_the_same_numbers(tmp_path, text):
    whole, parts = a_config(tmp_path, "whole"), a_config(tmp_path, "parts")
    trained(whole)
    outcome, _ = trained(parts, should_stop=after(3))
    assert (outcome.ending, outcome.step) == ("interrupted", 3)
    assert saved_steps(parts) == [2, 3]
    outcome, printed = trained(parts)
    assert outcome.checkpoint is not None
    assert f"resuming from step 3: {outcome.checkpoint.parent / 'step_00000003'}" in printed
    assert outcome.ending == "finished"
    assert losses_of(parts) == losses_of(whole)
    assert len(set(losses_of(whole).values())) == 8


def test_a_killed_run_repeats_the_steps_after_its_checkpoint(tmp_path, text):
    config = a_config(tmp_path)
    trained(config)
    before = losses_of(config)
    shutil.rmtree(tmp_path / "runs" / "run" / "checkpoints" / "step_00000008")
    trained(config)
    assert losses_of(config) == before
    assert [line["step"] for line in lines_of(config) if "loss" in line] == list(range(1, 9))


def test_a_finished_run_changes_nothing_when_it_is_started_again(tmp_path, text):
    config = a_config(tmp_path)
    first, _ = trained(config)
    metrics, steps = lines_of(config), saved_steps(config)
    second, _ = trained(config)
    assert second == first
    assert (lines_of(config), saved_steps(config)) == (metrics, steps)


def test_a_finished_run_goes_on_with_more_steps(tmp_path, text):
    trained(a_config(tmp_path))
    longer = a_config(tmp_path, steps=10)
    outcome, _ = trained(longer)
    assert outcome.step == 10
    assert list(losses_of(longer)) == list(range(1, 11))


def test_what_stays_of_checkpoints_is_the_users(tmp_path, text):
    config = a_config(tmp_path, checkpoint_interval=1, keep_interval=3, keep_best=1)
    trained(config)
    assert saved_steps(config) == [3, 6, 7, 8]  # of the evaluated ones the first is the best
    best = a_config(tmp_path, "best", checkpoint_interval=3, keep_best=1)
    trained(best)
    assert saved_steps(best)[-2:] == [6, 8]


def test_other_text_is_refused(tmp_path, text):
    trained(a_config(tmp_path))
    effective = read(tmp_path / "runs" / "run" / "config.yaml")
    (text / "m0.py").write_text("other")
    with pytest.raises(ConfigError, match=r"data\.fingerprint: got data with hash"):
        trained(effective)
    with pytest.raises(ConfigError, match=r"data\.fingerprint: "):
        trained(a_config(tmp_path))


@pytest.mark.parametrize("step", [1, 6, 8])
def test_a_nan_loss_stops_with_its_step_and_saves_the_last_good_state(tmp_path, text, step):
    config = a_config(tmp_path)
    with pytest.raises(Diverged) as caught:
        trained(config, pretended(nan_at=step))
    good = step - 1
    assert f"the loss of step {step} is nan" in str(caught.value)
    assert (f"checkpoints{os.sep}step_{good:08d}." if good else "no checkpoint yet") in str(
        caught.value
    )
    assert max(saved_steps(config), default=0) == good
    lines = [line for line in lines_of(config) if "loss" in line]
    assert (lines[-1]["step"], lines[-1]["loss"]) == (step, None)
    if step != 6:
        return
    # From there it goes on with the same batches, as any run does.
    trained(config)
    whole = a_config(tmp_path, "whole")
    trained(whole)
    assert losses_of(config) == losses_of(whole)


def leaping(*steps):
    """A pretended engine of which the losses of some steps are far above the others'."""
    engine: Any = pretended()

    def train_batch(state, batch):
        state, metrics = engine.train_batch(state, batch)
        factor = 9 if int(state["step"]) in steps else 1
        return state, metrics | dict(loss=metrics["loss"] * factor)

    return engine._replace(train_batch=train_batch)


def test_a_leap_is_seen_right_after_a_resume_too(tmp_path, text):
    long: dict[str, Any] = dict(steps=26, spike=3.0, eval_interval=99, checkpoint_interval=99)
    config = a_config(tmp_path, **long)
    assert trained(config, leaping(25), should_stop=after(22))[0].step == 22
    with pytest.raises(Diverged, match=r"loss of step 25 is .* times the median of the 20 before"):
        trained(config, leaping(25))
    told = a_config(tmp_path, "told", spike_action="log", **long)
    outcome, printed = trained(told, leaping(23, 24))
    assert (outcome.ending, outcome.step) == ("finished", 26)
    assert printed.count("SPIKE: the loss of step 23 is ") == printed.count("SPIKE") == 1
    folder = tmp_path / "runs" / "told"
    events = read_history(folder / "history.jsonl")
    assert [event["step"] for event in events if event["event"] == "spike"] == [23]
    assert "spike: the loss of step 23" in (folder / "summary.html").read_text()


def test_a_state_that_is_bad_itself_is_not_saved_when_a_run_diverges(tmp_path, text):
    config = a_config(tmp_path)
    with pytest.raises(Diverged, match=r"of step 6 is nan.*step_00000004"):
        trained(config, pretended(nan_at=6, eval_nan_at=5))
    assert saved_steps(config) == [2, 4]


def test_a_run_that_diverges_three_times_in_one_step_is_not_started_again(tmp_path, text):
    config = a_config(tmp_path)
    for _ in range(2):
        with pytest.raises(Diverged):
            trained(config, pretended(nan_at=5))
    with pytest.raises(CrashLoop, match="step 5 with Diverged"):
        trained(config, pretended(nan_at=5))


def test_a_run_that_diverges_goes_back_and_leaves_out_what_it_has_seen(tmp_path, text):
    config = a_config(tmp_path, rollbacks=1)
    batches = batches_of(config, corpus_of(config))
    engine = pretended(nan_of=batches[5])
    outcome, printed = trained(config, engine)
    assert (outcome.ending, outcome.step) == ("finished", 8)
    assert "ROLLED BACK: the loss of step 5 is nan" in printed
    assert "going on from step 4, with batches from 6 on" in printed
    # Steps 5 to 8 are of batches 6 to 9.
    total = float(jax.random.uniform(jax.random.key(0)))
    expected = {}
    for step, number in enumerate([1, 2, 3, 4, 6, 7, 8, 9], 1):
        total = total * 0.9 + batches[number]["inputs"].mean()
        expected[step] = total / 100
    assert losses_of(config) == pytest.approx(expected, rel=1e-5)
    dropped = (tmp_path / "runs" / "run" / "metrics.jsonl.dropped").read_text()
    assert json.loads(dropped.splitlines()[-1])["loss"] is None
    # Cut after the rollback, it goes on with the same batches.
    cut = a_config(tmp_path, "cut", rollbacks=1)
    # Asked by two evaluations too, and where it goes back; step 5 is done twice.
    trained(cut, engine, should_stop=after(10))
    outcome, printed = trained(cut, engine)
    assert "resuming from step 6" in printed and "ROLLED" not in printed
    assert losses_of(cut) == losses_of(config)


def test_a_run_that_diverges_before_its_first_checkpoint_begins_anew(tmp_path, text):
    config = a_config(tmp_path, rollbacks=1)
    outcome, printed = trained(config, pretended(nan_of=batches_of(config, corpus_of(config))[1]))
    assert outcome.ending == "finished"
    assert "going on from step 0, with batches from 2 on" in printed


def test_a_run_goes_back_so_often_and_then_ends(tmp_path, text):
    with pytest.raises(Diverged, match=r"the loss of step 5 is nan.*last good checkpoint"):
        trained(a_config(tmp_path, rollbacks=2), pretended(nan_at=5))


def test_steps_that_may_be_skipped_are_written_and_training_goes_on(tmp_path, text):
    config = a_config(tmp_path, log_interval=8, most_skipped=2)
    outcome, printed = trained(config, pretended(nan_at=5, skipped=2))
    assert (outcome.ending, outcome.step) == ("finished", 8)
    (line,) = [line for line in lines_of(config) if "skipped" in line]
    assert (line["step"], line["loss"], line["skipped"]) == (5, None, 2)
    assert "skipped 2" in printed
    with pytest.raises(Diverged, match="of step 5 is nan, and the 2 steps before were skipped too"):
        trained(a_config(tmp_path, "other", most_skipped=2), pretended(nan_at=5, skipped=3))


def test_a_state_with_a_nan_held_out_loss_is_not_saved(tmp_path, text):
    config = a_config(tmp_path)
    with pytest.raises(Diverged, match="held-out loss after step 6 is nan"):
        trained(config, pretended(eval_nan_at=6))
    assert saved_steps(config) == [2, 4]


def test_training_goes_on_without_tensorboard(tmp_path, text, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jaxpipe.metrics.tensorboard.TensorBoard.write", full)
    config = a_config(tmp_path)
    assert trained(config)[0].step == 8
    assert len(losses_of(config)) == 8
    assert [message for message in caplog.messages if "No space left" in message]


TINY = """
model: {layers: 1, width: 16, heads: 2}
optimizer: {warmup_steps: 2}
pipeline: {ranks: 2, data: 1, microbatches: 2}
trainer: {steps: 8, batch_size: 4, log_interval: 1, eval_batches: 1, checkpoint_interval: 4}
"""


def cli(tmp_path, *options, start: Any = None):
    """Runs `jaxpipe train` on a tiny model in its own process, or starts it."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    settings = {
        "data.path": tmp_path / "text",
        "data.held_out_fraction": 0.3,
        "data.pattern": "*.py",
        "data.sequence_length": 16,
        "run.directory": tmp_path / "runs",
    }
    flags = [str(part) for name, value in settings.items() for part in (f"--{name}", value)]
    command = [sys.executable, "-m", "jaxpipe", "train", str(tmp_path / "tiny.yaml")]
    command += [*flags, *options]
    theirs = {k: v for k, v in environment(JAX_PLATFORMS="cpu").items() if k != "COLUMNS"}
    how: dict[str, Any] = dict(env=theirs, text=True)
    how |= dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return start(command, **how) if start else subprocess.run(command, timeout=240, **how)


def test_a_signal_that_comes_while_it_compiles_saves_the_first_step(tmp_path, text):
    options = ("--trainer.steps", "5000", "--metrics.heartbeat", "0.1")
    started: Any = cli(tmp_path, *options, start=subprocess.Popen)
    with started:
        for line in started.stdout:
            if line.startswith("still tracing and compiling step 1,"):
                break
        started.send_signal(signal.SIGTERM)
        out, err = started.communicate(timeout=240)
    assert started.returncode == 0, err
    assert "interrupted; the same command goes on" in out
    [saved] = (tmp_path / "runs" / "gpt-stdlib" / "checkpoints").glob("step_*")
    assert saved.name == "step_00000001" and str(saved) in out
    assert (saved / "MANIFEST.json").exists()


def test_the_program_trains_resumes_and_stops_at_nan(tmp_path, text):
    folder = tmp_path / "runs" / "gpt-stdlib"

    first = cli(tmp_path)
    assert first.returncode == 0, first.stderr
    assert "1f1b: 2 ranks, 2 stages, 2 microbatches" in first.stdout
    assert "held-out loss" in first.stdout
    assert len(list(folder.glob("events*"))) == 1
    losses = losses_of(folder)
    assert list(losses) == list(range(1, 9))
    assert losses[8] < losses[1]
    step = StepRecord.read(folder / "timeline.json")
    assert step is not None and step.fastest is not None
    page = (folder / "summary.html").read_text()
    assert f"<b>{step.fastest.bubble_fraction:.1%}</b><span>bubble, measured" in page

    # As if it had been killed after the checkpoint of step 4.
    shutil.rmtree(folder / "checkpoints" / "step_00000008")
    second = cli(tmp_path, "--metrics.no-timeline")
    assert second.returncode == 0, second.stderr
    assert "resuming from step 4" in second.stdout
    assert losses_of(folder) == losses  # bit by bit

    changes = ["--trainer.steps", "12", "--optimizer.learning-rate", "1e30"]
    changes += ["--trainer.most-skipped", "0", "--metrics.no-timeline"]
    third = cli(tmp_path, *changes)
    assert third.returncode == 4, third.stderr
    assert "Traceback" not in third.stderr
    bad = next(step for step, loss in losses_of(folder).items() if loss is None)
    assert 8 < bad <= 12
    assert f"the loss of step {bad} is" in third.stderr
    assert str(folder / "checkpoints" / "step_00000008") in third.stderr
    assert sorted(path.name for path in (folder / "checkpoints").glob("step_*")) == [
        "step_00000004", "step_00000008",
    ]  # fmt: skip
