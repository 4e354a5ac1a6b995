"""What a run says while it works, and what it keeps of that: logs, history, signs of life."""

import dataclasses
import io
import json
import logging
import sys
import time
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import pytest
import rich.console
from pretended import a_config, after, lines_of, trained

from jaxpipe.config import MetricsConfig
from jaxpipe.metrics import (
    History,
    LiveConsole,
    LogFile,
    NoConsole,
    PlainConsole,
    TimeAccount,
    environment,
    heartbeat,
    watched_compilation,
)
from jaxpipe.metrics.history import read_history
from jaxpipe.sections import Sections


def with_metrics(config, **metrics):
    return dataclasses.replace(config, metrics=MetricsConfig(**metrics))


def test_a_long_section_gives_signs_of_life_and_a_short_one_none():
    said, sections = [], Sections()
    with heartbeat(lambda: sections.current, lambda *what: said.append(what), 0.2):
        with sections.enter("compile", 1):
            time.sleep(0.7)
            with sections.enter("data", 1):  # entered and left within a long section
                pass
            time.sleep(0.1)
        quiet = len(said)
        for step in range(2, 30):
            with sections.enter("step", step):
                time.sleep(0.01)
    assert 2 <= quiet <= 4 and len(said) == quiet
    assert {what for what, _ in said} == {"tracing and compiling step 1"}
    assert [round(seconds, 1) for _, seconds in said][:2] == [0.2, 0.4]


def test_where_the_time_goes_adds_up():
    account, sections = TimeAccount(), Sections()
    begin = time.monotonic()
    sections.listen(account)
    with sections.enter("start"):
        time.sleep(0.05)
        with sections.enter("restore"):
            time.sleep(0.1)
    seconds, all_of_it = account.seconds(), time.monotonic() - begin
    assert sum(seconds.values()) == pytest.approx(all_of_it, abs=0.02)
    assert seconds["restore"] > 0.09 and seconds["start"] > 0.04


def test_compilations_are_told_apart_from_what_follows():
    with watched_compilation() as times:
        before = times.read()
        jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8)))
        first = times.read().since(before)
        assert min(first.tracing, first.lowering, first.compiling) > 0
        assert "(without a compilation cache)" in str(first) or first.hits + first.misses
    jax.jit(lambda x: jnp.cos(x) @ x)(jnp.ones((8, 8)))
    assert times.read().since(before) == first  # nobody listens any more


def test_a_log_has_what_was_said_before_it_was_opened_and_what_python_warns_of(tmp_path):
    stream = io.StringIO()
    log = LogFile(PlainConsole(10, stream))
    log.note("early\n\nlines")
    log.start(tmp_path / "log" / "host_0.txt")
    log.write(3, {"loss": 2.5})
    log.still("compiling", 30)
    logging.getLogger("some.library").warning("a disk is %s", "full")
    log.close()
    log.note("late")
    lines = (tmp_path / "log" / "host_0.txt").read_text().splitlines()
    said = ["early", "", "lines", "step 3  loss 2.5000", "still compiling, for 30 s"]
    assert [line[21:] for line in lines] == [*said, "warning: a disk is full"]
    assert "step  3/10  loss 2.5000\nstill compiling, for 30 s\n" in stream.getvalue()
    quiet = LogFile(NoConsole())
    quiet.start(tmp_path / "log" / "host_1.txt")
    quiet.note("of another process")
    quiet.close()
    assert (tmp_path / "log" / "host_1.txt").read_text().endswith("  of another process\n")


def test_a_terminal_shows_what_lasts_while_it_lasts(monkeypatch):
    stream = io.StringIO()
    terminal = rich.console.Console(file=stream, force_terminal=True, width=80, color_system=None)
    console = LiveConsole(300, terminal)
    monkeypatch.setattr("jaxpipe.metrics.console._PATIENCE", 0.0)
    console.working("tracing and compiling step 1")
    time.sleep(0.6)
    console.working(None)
    shown = stream.getvalue()
    console.close()
    assert "tracing and compiling step 1, 0 s" in shown


def test_an_environment_hides_what_is_secret(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123")
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "http://me:pass@host:1")
    monkeypatch.setenv("HOME_ADDRESS", "here")
    found = environment()
    text = json.dumps(found)
    assert "0123" not in text and "pass@" not in text and "HOME_ADDRESS" not in text
    assert found["variables"]["WANDB_API_KEY"] == "(hidden)"
    assert found["variables"]["JAX_COORDINATOR_ADDRESS"] == "http://(hidden)@host:1"
    assert found["devices"] == [{"platform": "cpu", "kind": "cpu", "count": jax.device_count()}]


def test_a_run_keeps_its_history_its_environments_and_a_log(tmp_path, text):
    config = a_config(tmp_path, rollbacks=1)
    folder = tmp_path / "runs" / "run"
    trained(config, should_stop=after(3))
    trained(config)
    events = read_history(folder / "history.jsonl")
    assert [event["event"] for event in events] == [
        "started", "ended", "started", "resumed", "ended",
    ]  # fmt: skip
    assert [event["ending"] for event in events if event["event"] == "ended"] == [
        "interrupted", "finished",
    ]  # fmt: skip
    seconds = events[-1]["seconds"]
    assert {"start", "restore", "compile", "data", "step", "evaluation", "save"} <= seconds.keys()
    assert json.loads((folder / "env.json").read_text())["processes"] == 1
    assert (folder / "env-1.json").exists()
    log = (folder / "log" / "host_0.txt").read_text()
    assert log.count("step 3  loss") == 1 and "resuming from step 3" in log


def test_sinks_of_ones_own_hear_of_every_line(tmp_path, text):
    heard = []

    class Own:
        def __init__(self, folder, resume_step):
            heard.append((folder.name, resume_step))

        def write(self, step, scalars):
            heard.append((step, scalars["seconds"]))

        def close(self):
            heard.append("closed")

    config = with_metrics(a_config(tmp_path, steps=2), tensorboard=False)
    trained(config, sinks={"own": Own})
    lines = [(line["step"], line["seconds"]) for line in lines_of(config)]
    assert heard == [("run", 0), *lines, "closed"]
    assert not list((tmp_path / "runs" / "run").glob("events*"))


class Calls(ModuleType):
    """As much of `wandb` as is used: it remembers what it is told."""

    def __init__(self):
        super().__init__("wandb")
        self.started, self.told = [], []

    def init(self, **settings):
        self.started.append(settings)
        return self

    def define_metric(self, name, step_metric=None):
        self.told.append((name, step_metric))

    def log(self, row):
        self.told.append(row)

    def finish(self):
        self.told.append("finished")


def test_a_run_goes_on_as_the_same_run_of_weights_and_biases(tmp_path, text, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", calls := Calls())
    config = with_metrics(a_config(tmp_path, steps=4, eval_interval=4), wandb="my project")
    trained(config, should_stop=after(2))
    trained(config)
    first, second = calls.started
    assert first["id"] == second["id"] and second["resume"] == "allow"
    assert (first["project"], first["name"]) == ("my project", "run")
    assert first["config"]["trainer"]["steps"] == 4
    rows = [row for row in calls.told if isinstance(row, dict)]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    assert rows[-1]["held_out_loss"] > 0 and calls.told[-1] == "finished"
    assert ("*", "step") in calls.told


def test_what_is_off_is_not_even_imported(tmp_path, text, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it fails
    assert trained(a_config(tmp_path, steps=2))[0].ending == "finished"


def test_what_cannot_be_had_is_said_before_anything_starts(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    wrong = MetricsConfig(wandb="p", peak_flops=0.0, heartbeat=-1.0)
    package, *numbers = sorted(wrong.problems(), reverse=True)
    assert "metrics.wandb: got 'p', and the package wandb is not installed; pip install" in package
    assert [problem.split(":")[0] for problem in numbers] == [
        "metrics.peak_flops", "metrics.heartbeat",
    ]  # fmt: skip
    assert list(MetricsConfig().problems()) == []


def test_training_goes_on_without_weights_and_biases(tmp_path, text, monkeypatch, caplog):
    calls = Calls()
    monkeypatch.setattr(calls, "log", lambda row: 1 / 0)
    monkeypatch.setitem(sys.modules, "wandb", calls)
    config = with_metrics(a_config(tmp_path, steps=2), wandb="p")
    assert trained(config)[0].step == 2
    [warning] = [message for message in caplog.messages if "Weights & Biases failed" in message]
    assert "Training goes on" in warning


def test_a_history_that_cannot_be_written_warns_once_and_stops_nothing(tmp_path, caplog):
    history = History(tmp_path / "later" / "history.jsonl")
    history.add("started")
    history.add("resumed")
    assert len(caplog.messages) == 1 and "Training goes on" in caplog.text
    (tmp_path / "later").mkdir()  # as where there is room again
    (tmp_path / "later" / "history.jsonl").write_text('{"event": "resum')
    history.add("ended")
    found = read_history(tmp_path / "later" / "history.jsonl")
    assert [event["event"] for event in found] == ["ended"]
    assert read_history(tmp_path / "nothing.jsonl") == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full")
def test_a_log_that_cannot_be_written_warns_once_and_stops_nothing():
    stream = io.StringIO()
    log = LogFile(PlainConsole(10, stream))
    log.note("before")
    log.start(Path("/dev/full"))
    log.write(3, {"loss": 2.5})
    logging.getLogger("some.library").warning("hear, hear")
    log.note("after")
    log.close()
    shown = stream.getvalue()
    assert shown.count("/dev/full cannot be written: [Errno 28]") == shown.count("Errno") == 1
    assert all(line in shown for line in ("before\n", "step  3/10  loss 2.5000\n", "after\n"))
