"""The watchdog: processes that live but do not go on end, and say where they were."""

import dataclasses
import itertools
import json
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from children import environment
from pretended import a_config, after, saved_steps, trained

from jaxpipe.config import WatchConfig, by_field, read
from jaxpipe.crashes import Crashes, CrashLoop
from jaxpipe.data import TokenSamples
from jaxpipe.data.waiting import waited_for
from jaxpipe.errors import DataTimeoutError
from jaxpipe.processes.facts import code_facts
from jaxpipe.sections import Sections
from jaxpipe.watch import FILE, Hang, Watchdog, last_hang

STUCK = """
import ctypes, os, pathlib, sys, threading, time
from jaxpipe.sections import Sections
from jaxpipe.watch import Watchdog

how, sections = sys.argv[1], Sections()
limits = dict(step=0.4, compile=60, save=60, data=None)
with Watchdog(sections, limits, pathlib.Path(), facts={"a": 1}):
    for name in ("compile", "restore", "save"):
        with sections.enter(name, step=1):
            time.sleep(0.5)  # longer than a step, as it may be
    for step in range(1, 18):
        with sections.enter("data", step):
            time.sleep(0.5 if step == 1 else 0)
        with sections.enter("step", step):
            time.sleep(0.01)
            while step == 17 and how == "loop":
                pass
            if step == 17 and how == "sleep":
                threading.Event().wait()
            if step == 17 and how == "abort":
                os.abort()
            if step == 17 and how == "hold":
                ctypes.PyDLL(None).sleep(1000)  # holds Python's lock
print("done", how)
"""


def start(folder: Path, how: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", STUCK, how]
    return subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=60
    )


def test_what_takes_no_longer_than_it_may_ends_by_itself(tmp_path):
    done = start(tmp_path, "not at all")
    assert (done.returncode, done.stdout, done.stderr) == (0, "done not at all\n", "")
    assert list(tmp_path.iterdir()) == []
    assert last_hang(tmp_path) is None


@pytest.mark.parametrize("how", ["loop", "sleep"])
def test_a_process_that_does_not_go_on_ends_and_says_where_it_was(tmp_path, how):
    done = start(tmp_path, how)
    assert (done.returncode, done.stdout) == (1, "")
    said = "does not go on: 0.4 s in step (step 17), which is as long as it may take"
    assert f"jaxpipe: this process {said}" in done.stderr
    stacks = (tmp_path / "watch" / "0.stacks").read_text()
    assert stacks in done.stderr and 'File "<string>", line' in stacks
    hang = json.loads((tmp_path / FILE).read_text())
    assert (hang["process"], hang["section"], hang["step"]) == (0, "step", 17)
    assert 0.4 <= hang["seconds"] < 5 and hang["limit"] == 0.4 and hang["facts"] == {"a": 1}
    found = last_hang(tmp_path)
    assert found is not None and found.step == 17 and said in str(found)
    assert last_hang(tmp_path) is None  # told once
    assert [path.name for path in (tmp_path / "watch").iterdir()] == ["0.stacks"]


def test_one_that_holds_pythons_lock_does_too(tmp_path):
    began = time.monotonic()
    done = start(tmp_path, "hold")
    print(f"ended after {time.monotonic() - began:.1f} s")
    assert (done.returncode, done.stdout) == (1, "")
    assert "Timeout" in done.stderr and 'File "<string>", line' in done.stderr
    assert json.loads((tmp_path / FILE).read_text())["section"] == "step"
    left = (tmp_path / "watch" / "0.doing.json").read_text()
    found = last_hang(tmp_path)
    assert found is not None and last_hang(tmp_path) is None
    (tmp_path / "watch" / "0.doing.json").write_text(left)  # as where there is no `tee`
    assert last_hang(tmp_path) == found
    assert (found.process, found.section, found.step, found.limit) == (0, "step", 17, 0.4)
    assert "held Python's lock, in step (step 17)" in found.text and found.facts == {"a": 1}
    assert (tmp_path / found.stacks).read_text() in done.stderr


def test_whoever_crashed_has_not_hung_but_its_stacks_are_there(tmp_path):
    done = start(tmp_path, "abort")
    assert done.returncode == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in done.stderr and 'File "<string>", line' in done.stderr
    assert {path.name for path in (tmp_path / "watch").iterdir()} == {"0.stacks", "0.doing.json"}
    (tmp_path / "watch" / "1.doing.json").write_text("")  # a disk was full
    assert last_hang(tmp_path) is None
    assert [path.name for path in (tmp_path / "watch").iterdir()] == ["0.stacks"]


def test_a_loader_that_does_not_answer_is_named(tmp_path, text, monkeypatch):
    config = a_config(tmp_path, steps=40)
    config = dataclasses.replace(config, watch=WatchConfig(data=0.5))
    get, waits = TokenSamples.__getitem__, threading.Event()

    def read_a_few(samples, index):
        if threading.current_thread() is not threading.main_thread() and next(reads) > 20:
            waits.wait()
        return get(samples, index)

    reads = itertools.count()
    monkeypatch.setattr(TokenSamples, "__getitem__", read_a_few)
    with pytest.raises(DataTimeoutError) as caught:
        trained(config)
    waits.set()
    assert caught.value.exit_code == 1
    place = re.escape(str(tmp_path / "text"))
    assert re.match(
        rf"step (\d+): batch \1 of data.source text, data.path {place} did not come within 0.5 s",
        str(caught.value),
    )
    assert not (tmp_path / "runs" / "run" / FILE).exists()


STUCK_TRAINER = """
import dataclasses, sys, time
from pathlib import Path
from pretended import a_config, pretended, trained
from jaxpipe.checkpoint import Checkpoints
from jaxpipe.config import WatchConfig
from jaxpipe.replicas import Replicas

engine, calls, save = pretended(), [], Checkpoints.save
def wait(what):  # longer than a step may take
    calls.append(what)
    time.sleep(1.0)
def slow_save(*arguments, **options):
    wait("save")
    save(*arguments, **options)
Checkpoints.save = slow_save
Replicas.check = lambda self, state: wait("check")

def train_batch(state, batch):
    step = int(state["step"]) + 1
    if step == 1:
        wait("compile")
    while step == 3:
        assert calls == ["compile", "check", "save"], calls
    return engine.train_batch(state, batch)

config = a_config(Path(sys.argv[1]), check_interval=2)
config = dataclasses.replace(config, watch=WatchConfig(step=0.8))
trained(config, engine._replace(train_batch=train_batch))
"""


def test_a_training_step_that_does_not_end_ends_the_run(tmp_path, text):
    command = [sys.executable, "-c", STUCK_TRAINER, str(tmp_path)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "this process does not go on: 0.8 s in step (step 3)" in done.stderr
    folder = tmp_path / "runs" / "run"
    hang = json.loads((folder / FILE).read_text())
    assert (hang["process"], hang["section"], hang["step"]) == (0, "step", 3)
    stacks = (folder / hang["stacks"]).read_text()
    assert stacks in done.stderr and "in train_batch" in stacks and "steps.py" in stacks
    assert saved_steps(a_config(tmp_path)) == [2]


def test_batches_that_are_waited_for_are_the_same_and_so_are_their_errors():
    def batches():
        yield from ({"x": np.array(n)} for n in range(3))
        raise KeyError("bad")

    found = waited_for(batches, 5, str)
    assert [int(next(found)["x"]) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError, match="bad"):
        next(found)
    ends = waited_for(lambda: iter([{"x": np.array(1)}]), 5, str)
    assert len(list(ends)) == 1


def test_a_run_that_hangs_three_times_in_one_step_is_not_started_again(tmp_path, text):
    config, folder = a_config(tmp_path), tmp_path / "runs" / "run"
    outcome, _ = trained(config, should_stop=after(3))
    assert outcome.step == 3
    as_now = Crashes(folder, by_field(read(folder / "config.yaml")) | code_facts())
    for start in range(3):
        facts = {"facts": as_now.facts}
        Hang(0, "step", 4, 600.0, 600.0, f"hang {start}", "now", "", facts=facts).write(folder)
        if start < 2:
            outcome, printed = trained(config, should_stop=lambda: True)
            assert f"the last start hung: hang {start}" in printed
    with pytest.raises(CrashLoop, match="3 starts have all ended in step 4 with a hang in step: h"):
        trained(config)


def test_a_watchdog_leaves_when_something_fails(tmp_path):
    sections = Sections()
    with pytest.raises(ZeroDivisionError), Watchdog(sections, {"step": 0.2}, tmp_path), \
            sections.enter("step", step=1):  # fmt: skip
        raise ZeroDivisionError
    with sections.enter("step", step=2):
        time.sleep(0.3)
    assert list(tmp_path.iterdir()) == []
