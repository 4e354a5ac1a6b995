"""What goes wrong around training: crashes in a row, signals at bad moments, slow or full disks."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from children import environment
from pretended import a_config, after, losses_of, pretended, saved_steps, trained

from jaxpipe import cli
from jaxpipe.checkpoint import Checkpoints, writer
from jaxpipe.crashes import FILE, CrashLoop
from jaxpipe.errors import CheckpointError, ConfigError
from jaxpipe.signals import stop_signals
from jaxpipe.trainer import Outcome

SHIPPED = Path(__file__).parents[1] / "configs" / "gpt-stdlib.yaml"


def failing(step: int, error: Exception | None = None) -> Any:
    """An engine whose n-th step fails, counted over the whole run; it counts its steps."""
    engine: Any = pretended()
    calls = []

    def train_batch(state, batch):
        calls.append(None)
        if int(state["step"]) + 1 == step:
            raise error or ZeroDivisionError("the batch of this step is bad")
        return engine.train_batch(state, batch)

    return engine._replace(train_batch=train_batch), calls


def test_a_run_that_ends_three_times_in_one_way_is_not_started_again(tmp_path, text):
    config = a_config(tmp_path)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            trained(config, failing(4)[0])
    with pytest.raises(CrashLoop, match=r"step 4 with ZeroDivisionError: the batch") as caught:
        trained(config, failing(4)[0])
    assert caught.value.exit_code == 3 and isinstance(caught.value.__cause__, ZeroDivisionError)

    engine, calls = failing(4)
    with pytest.raises(CrashLoop, match="3 starts have all ended in step 4"):
        trained(config, engine)
    assert not calls  # refused before anything was computed
    notes = (tmp_path / "runs" / "run" / FILE).read_text().splitlines()
    assert len(notes) == 3 and "Traceback" in json.loads(notes[-1])["traceback"]

    (tmp_path / "runs" / "run" / FILE).unlink()
    assert trained(config)[0].ending == "finished"


def test_a_run_that_was_changed_may_be_started_again(tmp_path, text):
    config = a_config(tmp_path)
    for error in (ZeroDivisionError, ZeroDivisionError, CrashLoop):
        with pytest.raises(error):
            trained(config, failing(4)[0])
    optimizer = dataclasses.replace(config.optimizer, learning_rate=1e-5)
    assert trained(dataclasses.replace(config, optimizer=optimizer))[0].ending == "finished"


@pytest.mark.parametrize("other", [failing(3), failing(4, KeyError("x"))])
def test_crashes_that_differ_do_not_add_up(tmp_path, text, other):
    config = a_config(tmp_path)
    for engine in (failing(4), failing(4), other, failing(4), failing(4)):
        with pytest.raises((ZeroDivisionError, KeyError)):
            trained(config, engine[0])
    assert trained(config)[0].ending == "finished"


def test_mistakes_are_no_crashes(tmp_path, text):
    config = a_config(tmp_path)
    for _ in range(5):
        with pytest.raises(ConfigError):
            trained(config, failing(2, ConfigError("a mistake"))[0])
    assert not (tmp_path / "runs" / "run" / FILE).exists()


def test_too_little_room_is_found_before_anything_is_computed(tmp_path, text, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=3)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    engine, calls = failing(99)
    engine = engine._replace(init=lambda *_: calls.append("init"))
    with pytest.raises(CheckpointError, match=r"no room .* it takes 8 bytes, and 3 are free"):
        trained(a_config(tmp_path), engine)
    assert not calls
    monkeypatch.undo()
    finished, _ = trained(a_config(tmp_path, "other"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    again, _ = trained(a_config(tmp_path, "other"))  # which saves nothing
    assert again == finished


def test_slow_storage_holds_up_saves_but_two_never_run_at_once(tmp_path, text, monkeypatch):
    under_way, most, sums = [], [], writer.sums

    def slow(folder):
        under_way.append(folder)
        most.append(len(under_way))
        time.sleep(0.2)
        under_way.remove(folder)
        return sums(folder)

    monkeypatch.setattr(writer, "sums", slow)
    config = a_config(tmp_path, checkpoint_interval=1, eval_interval=8)
    outcome, _ = trained(config)
    assert outcome.ending == "finished" and saved_steps(config) == [7, 8]
    assert most == [1] * 8


def signalled(config, engine) -> tuple[Any, str]:
    """Trains, with the handlers of `jaxpipe train`."""
    with stop_signals() as asked:
        return trained(config, engine, should_stop=lambda: bool(asked))


def test_a_signal_while_it_evaluates_ends_that_and_saves(tmp_path, text):
    engine: Any = pretended()
    calls = []

    def eval_batch(state, batch):
        calls.append(None)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return engine.eval_batch(state, batch)

    config = a_config(tmp_path, eval_batches=6)
    outcome, _ = signalled(config, engine._replace(eval_batch=eval_batch))
    assert (outcome.ending, outcome.step, len(calls)) == ("interrupted", 3, 2)
    assert saved_steps(config) == [2, 3]
    assert trained(config)[0].ending == "finished"
    whole = a_config(tmp_path, "whole", eval_batches=6)
    trained(whole)
    assert losses_of(config) == losses_of(whole)


def test_a_signal_while_the_last_state_is_evaluated_leaves_that_to_the_next_start(tmp_path, text):
    engine: Any = pretended()

    def eval_batch(state, batch):
        os.kill(os.getpid(), signal.SIGTERM)
        return engine.eval_batch(state, batch)

    config = a_config(tmp_path, eval_interval=8, eval_batches=6)
    outcome, _ = signalled(config, engine._replace(eval_batch=eval_batch))
    assert (outcome.ending, outcome.step) == ("interrupted", 8)
    outcome, _ = trained(config)
    assert outcome.ending == "finished" and outcome.held_out_loss > 0


def test_a_signal_while_it_restores_ends_without_another_step(tmp_path, text, monkeypatch):
    config = a_config(tmp_path, steps=400, checkpoint_interval=400, eval_interval=400)
    trained(config, should_stop=after(5))
    read = Checkpoints.restore

    def signal_and_read(*arguments, **options):
        os.kill(os.getpid(), signal.SIGUSR1)  # as SLURM warns, for example
        return read(*arguments, **options)

    monkeypatch.setattr(Checkpoints, "restore", signal_and_read)
    outcome, _ = signalled(config, failing(1)[0])
    assert (outcome.ending, outcome.step) == ("interrupted", 5)
    assert outcome.checkpoint and outcome.checkpoint.is_dir() and saved_steps(config) == [5]


@pytest.mark.parametrize("moment", ["local_rows", "init"])
def test_a_signal_before_the_first_step_ends_without_one(tmp_path, text, moment):
    engine, steps = failing(1)
    do, done = getattr(engine, moment), []

    def signal_and_do(*arguments):
        if not done:  # a second one ends a process at once
            os.kill(os.getpid(), signal.SIGTERM)
        done.append(moment)
        return do(*arguments)

    def init(*arguments):
        done.append("init")
        return engine.init(*arguments)

    config = a_config(tmp_path)
    outcome, _ = signalled(config, engine._replace(**({"init": init} | {moment: signal_and_do})))
    assert (outcome.ending, outcome.step, outcome.checkpoint) == ("interrupted", 0, None)
    assert not steps and set(done) == {moment} and saved_steps(config) == []
    assert trained(config)[0].ending == "finished"


@pytest.mark.parametrize(("asked", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_run_without_a_step_says_that_nothing_is_saved(monkeypatch, capsys, asked, code):
    def run(*_, should_stop, **__):
        os.kill(os.getpid(), asked)
        assert should_stop()
        return Outcome("interrupted", 0, None, float("nan"), None)

    monkeypatch.setattr("jaxpipe.trainer.run", run)
    monkeypatch.setattr("jaxpipe.cli.train.simulate_devices", lambda count: None)
    assert cli.main(["train", str(SHIPPED)]) == code
    assert "before the first step: there is nothing to save yet" in capsys.readouterr().out


TWICE = """
import os, signal, sys, time
from pathlib import Path
from pretended import a_config, trained
from jaxpipe.checkpoint import writer
from jaxpipe.signals import stop_signals

def slow(folder):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1.2)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1000)

writer.sums = slow
config = a_config(Path(sys.argv[1]), steps=10**6, checkpoint_interval=6, eval_interval=10**6)
with stop_signals(patience=0.5) as asked:
    trained(config, should_stop=lambda: False)  # it does not hear of the first one
"""


def test_a_second_signal_ends_at_once_and_leaves_nothing_that_counts(tmp_path, text):
    command = [sys.executable, "-c", TWICE, str(tmp_path)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    # By the exception, or by force, whichever comes first.
    assert done.returncode in (-signal.SIGINT, 130), done.stderr
    config = a_config(tmp_path)
    assert saved_steps(config) == []
    folder = tmp_path / "runs" / "run" / "checkpoints"
    [part] = folder.glob("step_*")  # no part counts, as it has no manifest
    assert part.name == "step_00000006" and not (part / "MANIFEST.json").exists()
    outcome, printed = trained(config)
    assert outcome.ending == "finished" and saved_steps(config) == [6, 8]
    assert f"a save that was never finished is cleared: {part}" in printed


TOO_LATE = """
import os, signal, sys, time
from pathlib import Path
from pretended import a_config, pretended, trained
from jaxpipe.checkpoint import writer
from jaxpipe.signals import stop_signals

sums, engine = writer.sums, pretended()

def slow(folder):
    if folder.name.endswith("5"):
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)  # all the time that there was
    return sums(folder)

def train_batch(state, batch):
    if int(state["step"]) == 4:
        os.kill(os.getpid(), signal.SIGTERM)
    return engine.train_batch(state, batch)

writer.sums = slow
with stop_signals() as asked:
    config, signalled = a_config(Path(sys.argv[1])), engine._replace(train_batch=train_batch)
    trained(config, signalled, should_stop=lambda: bool(asked))
"""


def test_less_time_than_a_save_takes_leaves_the_one_before(tmp_path, text):
    command = [sys.executable, "-c", TOO_LATE, str(tmp_path)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL and "stopping after this step" in done.stderr
    config = a_config(tmp_path)
    assert (tmp_path / "runs" / "run" / "checkpoints" / "step_00000005").is_dir()  # begun
    assert saved_steps(config) == [2, 4]
    outcome, printed = trained(config)
    assert outcome.ending == "finished" and "resuming from step 4" in printed
    whole = a_config(tmp_path, "whole")
    trained(whole)
    assert losses_of(config) == losses_of(whole)


def test_a_signal_while_it_saves_ends_with_both_states_saved(tmp_path, text, monkeypatch):
    sums = writer.sums

    def signal_and(folder):
        if folder.name.endswith("4"):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)
        return sums(folder)

    monkeypatch.setattr(writer, "sums", signal_and)
    config = a_config(
        tmp_path, steps=400, checkpoint_interval=4, eval_interval=400, keep_checkpoints=9
    )
    outcome, _ = signalled(config, pretended())
    assert outcome.ending == "interrupted" and 4 < outcome.step < 400
    assert saved_steps(config)[0] == 4 and saved_steps(config)[-1] == outcome.step
