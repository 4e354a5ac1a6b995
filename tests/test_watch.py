"""The watchdog: processes that live but do not go on end, and say where they were."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxpipe.sections import Sections
from jaxpipe.watch import FILE, Watchdog, last_hang

REPOSITORY = Path(__file__).parents[1]
STUCK = """
import ctypes, os, pathlib, sys, threading, time
from jaxpipe.sections import Sections
from jaxpipe.watch import Watchdog

how, sections = sys.argv[1], Sections()
with Watchdog(sections, dict(step=0.4, compile=60, data=None), pathlib.Path(), facts={"a": 1}):
    with sections.enter("compile", step=1), sections.enter("restore"):
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
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", STUCK, how]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )


def test_what_takes_no_longer_than_it_may_ends_by_itself(tmp_path):
    done = start(tmp_path, "not at all")
    assert (done.returncode, done.stdout, done.stderr) == (0, "done not at all\n", "")
    assert [path.name for path in tmp_path.rglob("*")] == ["watch"]  # which is empty
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
    assert not (tmp_path / FILE).exists()  # it could not write that
    found = last_hang(tmp_path)
    assert found is not None
    assert (found.process, found.section, found.step, found.limit) == (0, "step", 17, 0.4)
    assert "held Python's lock, in step" in found.text and found.facts == {"a": 1}
    assert (tmp_path / found.stacks).read_text() in done.stderr


def test_whoever_crashed_has_not_hung_but_its_stacks_are_there(tmp_path):
    done = start(tmp_path, "abort")
    assert done.returncode == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in done.stderr and 'File "<string>", line' in done.stderr
    assert {path.name for path in (tmp_path / "watch").iterdir()} == {"0.stacks", "0.doing.json"}
    (tmp_path / "watch" / "1.doing.json").write_text("")  # a disk was full
    assert last_hang(tmp_path) is None
    assert [path.name for path in (tmp_path / "watch").iterdir()] == ["0.stacks"]


def test_a_watchdog_leaves_when_something_fails(tmp_path):
    sections = Sections()
    with pytest.raises(ZeroDivisionError), Watchdog(sections, {"step": 0.2}, tmp_path), \
            sections.enter("step", step=1):  # fmt: skip
        raise ZeroDivisionError
    with sections.enter("step", step=2):
        time.sleep(0.3)
    assert list((tmp_path / "watch").iterdir()) == []
