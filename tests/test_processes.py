"""Many processes: real ones, on one machine, that train the same, and that end together."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
CHILD = [sys.executable, str(REPOSITORY / "tests" / "one_of_many.py")]
PATIENCE = 200  # seconds for anything that compiles, on cores that are busy with other things
AT_ONCE = 5  # seconds in which all end after one has failed


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


class Run:
    """Processes of one run, and what they have said."""

    def __init__(self, folder: Path, count: int, command: Sequence[object], own=None, cwd=None):
        """Starts them; `own` has further arguments for single processes."""
        self.folder = folder
        shared = dict(
            JAX_COORDINATOR_ADDRESS=f"localhost:{free_port()}",
            JAX_NUM_PROCESSES=str(count),
            JAX_PLATFORMS="cpu",
            PYTHONPATH=str(REPOSITORY),
        )
        environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | shared
        self.processes = []
        for index in range(count):
            arguments = [str(word) for word in (*command, *(own or {}).get(index, ()))]
            out, err = (self._file(index, kind).open("wb") for kind in ("out", "err"))
            self.processes.append(
                subprocess.Popen(
                    arguments, stdout=out, stderr=err, cwd=cwd or folder,
                    env=environment | {"JAX_PROCESS_ID": str(index)},
                )
            )  # fmt: skip

    def _file(self, index: int, kind: str) -> Path:
        return self.folder / f"{index}.{kind}"

    def out(self, index: int) -> list[str]:
        lines = self._file(index, "out").read_text().splitlines()
        return [line for line in lines if not line.startswith("[Gloo]")]

    def err(self, index: int) -> str:
        return self._file(index, "err").read_text()

    def wait_for(self, line: str, index: int = 0, kind: str = "out") -> None:
        deadline = time.monotonic() + PATIENCE
        while line not in self._file(index, kind).read_text():
            assert time.monotonic() < deadline, self.everything()
            assert self.processes[index].poll() is None, self.everything()
            time.sleep(0.02)

    def codes(self, within: float = PATIENCE) -> list[int]:
        """The exit codes, once all have ended."""
        deadline = time.monotonic() + within
        for process in self.processes:
            try:
                process.wait(max(0.01, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                pytest.fail(f"{within} s were not enough\n{self.everything()}")
        return [process.returncode for process in self.processes]

    def everything(self) -> str:
        files = sorted(self.folder.glob("[0-9].*"))
        return "\n".join(f"-- {file.name}\n{file.read_text()}" for file in files)

    def stop(self) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()


@pytest.fixture
def run(tmp_path) -> Iterator:
    started = []

    def start(*arguments, **options) -> Run:
        folder = tmp_path / f"run{len(started)}"
        folder.mkdir()
        started.append(Run(folder, *arguments, **options))
        return started[-1]

    yield start
    for one in started:
        one.stop()


FOR_EVER = [*CHILD, "as listed", 100_000, ""]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_all_and_is_named(run, victim):
    both = run(2, FOR_EVER + ["none", -1, -1])
    both.wait_for("step 5\n")
    both.processes[victim].kill()
    killed = time.monotonic()
    codes = both.codes(within=AT_ONCE)
    print(f"detected after {time.monotonic() - killed:.2f} s")
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] == 1, both.everything()
    assert f"process {victim} is lost" in both.err(1 - victim)
