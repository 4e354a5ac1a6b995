"""Many processes: real ones, on one machine, that train the same, and that end together."""

import contextlib
import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import one_of_many
import pytest
import yaml
from children import REPOSITORY, environment
from pretended import a_config, pretended, trained

from jaxpipe import cli
from jaxpipe.cli.train import Train
from jaxpipe.errors import ProcessError
from jaxpipe.prepare import batches_of, dataset_of
from jaxpipe.processes import Launch, Processes, start_processes
from jaxpipe.processes.facts import differences
from jaxpipe.processes.hub import Hub
from jaxpipe.processes.launch import ADDRESS, Place, find_place
from jaxpipe.processes.member import connect
from jaxpipe.processes.rows import Rows, row_problems
from jaxpipe.summary import StepRecord

SHIPPED = REPOSITORY / "configs" / "gpt-stdlib.yaml"
CHILD = [sys.executable, str(REPOSITORY / "tests" / "one_of_many.py")]
PATIENCE = 200  # seconds for anything that compiles, on cores that are busy with other things
AT_ONCE = 5  # seconds in which all end after one has failed
# What Gloo prints as it connects, in the pieces that it writes: its threads mix theirs.
GLOO = re.compile(
    r"\[Gloo\] Rank \d*|\d* is connected to \d*|\d* peer ranks\. "
    r"|Expected number of connected peer ranks is : \d*"
)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


class Run:
    """Processes of one run, and what they have said."""

    def __init__(self, folder: Path, count: int, command: Sequence[object], own=None, missing=0):
        """Starts them but the missing ones; `own` has further arguments for single processes."""
        self.folder = folder
        shared = environment(
            JAX_COORDINATOR_ADDRESS=f"localhost:{free_port()}",
            JAX_NUM_PROCESSES=count + missing,
            JAX_PLATFORMS="cpu",
        )
        self.processes = []
        for index in range(count):
            arguments = [str(word) for word in (*command, *(own or {}).get(index, ()))]
            own_environment = shared | {"JAX_PROCESS_ID": str(index)}
            with (
                self._file(index, "out").open("wb") as out,
                self._file(index, "err").open("wb") as err,
            ):
                self.processes.append(
                    subprocess.Popen(
                        arguments, stdout=out, stderr=err, cwd=folder, env=own_environment
                    )
                )

    def _file(self, index: int, kind: str) -> Path:
        return self.folder / f"{index}.{kind}"

    def out(self, index: int) -> list[str]:
        lines = GLOO.sub("", self._file(index, "out").read_text()).splitlines()
        return [line for line in lines if line.strip() and not line.strip().isdigit()]

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


def since(run: Run, index: int) -> float:
    """Seconds since a process has begun to misbehave."""
    [began] = [float(line.split()[1]) for line in run.out(index) if line.startswith("now ")]
    return time.time() - began


@pytest.fixture(scope="module")
def of_one_process():
    mesh = one_of_many.mesh_of("as listed", one_of_many.PIPE, one_of_many.DATA)
    return one_of_many.results(one_of_many.build(mesh), 3, everything=True)


@pytest.mark.parametrize(
    ("order", "rows"),
    [
        # A process has both copies of its rank.
        pytest.param("as listed", [[0, 16]] * 4, marks=pytest.mark.slow),
        ("data outside", [[0, 8], [0, 8], [8, 16], [8, 16]]),  # both axes span processes
    ],
)
def test_four_processes_give_what_one_gives_to_the_bit(run, tmp_path, of_one_process, order, rows):
    file = tmp_path / "results.npz"
    four = run(4, [*CHILD, order, 3, file])
    assert four.codes() == [0] * 4, four.everything()
    said = [json.loads(four.out(i)[-1]) for i in range(4)]
    assert [words[:3] for words in said] == [[i, *own] for i, own in enumerate(rows)]
    [[odd]] = {tuple(words[3:]) for words in said}
    assert re.fullmatch(
        r"x: pipe \d, data \d, tensor 0 \(process 1, .*\) differs, of 8 copies", odd
    )
    with np.load(file) as found:
        assert len(found.files) == len(of_one_process) or order == "as listed"
        assert {"losses", "params['00_Embed']['embedding']"} <= set(found.files)
        for name in found.files:
            np.testing.assert_array_equal(found[name], of_one_process[name], err_msg=name)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_all_and_is_named(run, victim):
    both = run(2, [*FOR_EVER, "none", -1, -1])
    both.wait_for("step 5\n")
    both.processes[victim].kill()
    killed = time.monotonic()
    codes = both.codes(within=AT_ONCE)
    print(f"noticed after {time.monotonic() - killed:.2f} s")
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] == 1, both.everything()
    assert f"process {victim} is lost" in both.err(1 - victim)


@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_process_without_a_sign_of_life_ends_all_and_is_named(run, victim):
    both = run(2, [*FOR_EVER, "none", -1, -1])
    both.wait_for("step 5\n")
    both.processes[victim].send_signal(signal.SIGSTOP)
    stopped = time.monotonic()
    assert both.processes[1 - victim].wait(timeout=5 + AT_ONCE) == 1, both.everything()
    print(f"noticed after {time.monotonic() - stopped:.2f} s")
    assert f"process {victim} is lost; it gave no sign of life" in both.err(1 - victim)


@pytest.mark.parametrize("culprit", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_one_that_does_not_go_on_ends_all_and_all_show_where_they_are(run, tmp_path, culprit):
    both = run(2, [*CHILD, "as listed", 100_000, tmp_path, "loop", culprit, 5])
    assert both.codes() == [1, 1], both.everything()
    seconds = since(both, culprit)
    print(f"all ended after {seconds:.2f} s")
    assert one_of_many.LIMIT <= seconds < one_of_many.LIMIT + AT_ONCE
    hang = json.loads((tmp_path / "hang.json").read_text())
    assert (hang["process"], hang["section"], hang["step"]) == (culprit, "work", 5)
    assert hang["doing"][str(culprit)]["section"] == "work"
    assert hang["doing"][str(1 - culprit)]["section"] == "step"
    for index in range(2):
        assert f"process {culprit} does not go on: 2 s in work (step 5)" in both.err(index)
        stacks = (tmp_path / "watch" / f"{index}.stacks").read_text()
        assert ("in misbehave" in stacks) == (index == culprit) and "in go_on" in stacks
        assert stacks in both.err(index)
    assert f"process {1 - culprit}: in step (step 5) for" in both.err(1 - culprit)


@pytest.mark.parametrize("culprit", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_one_that_holds_pythons_lock_ends_all_too(run, tmp_path, culprit):
    both = run(2, [*CHILD, "as listed", 100_000, tmp_path, "hold", culprit, 5])
    # The culprit too, before JAX could abort it because process 0 has gone.
    assert both.codes() == [1, 1], both.everything()
    print(f"all ended after {since(both, culprit):.2f} s")
    assert since(both, culprit) < 5 + AT_ONCE + 2
    hang = json.loads((tmp_path / "hang.json").read_text())
    assert hang["process"] == culprit and "gave no sign of life" in hang["text"]
    assert (hang["section"], hang["step"]) == ("work", 5)
    other, own = (
        (tmp_path / "watch" / f"{index}.stacks").read_text() for index in (1 - culprit, culprit)
    )
    assert "in go_on" in other and other in both.err(1 - culprit)
    assert "in misbehave" in own and own in both.err(culprit)


@pytest.mark.parametrize("culprit", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_an_exception_ends_all_and_all_show_it(run, culprit):
    both = run(2, [*FOR_EVER, "raise", culprit, 5])
    assert both.codes() == [1, 1], both.everything()
    seconds = since(both, culprit)
    print(f"all ended after {seconds:.2f} s")
    assert seconds < AT_ONCE
    for index in range(2):
        assert f"process {culprit} failed:\nTraceback" in both.err(index)
        assert both.err(index).count("ZeroDivisionError: thrown on purpose") == 1
    assert f"process {1 - culprit} ends with it" in both.err(1 - culprit)


def test_leaving_early_is_no_success(run):
    both = run(2, [*FOR_EVER, "exit", 1, 5])
    assert both.codes() == [1, 1], both.everything()
    seconds = since(both, 1)
    print(f"all ended after {seconds:.2f} s")
    assert seconds < AT_ONCE
    assert all("process 1 left early" in both.err(index) for index in range(2))


def test_leaving_together_is(run):
    both = run(2, [*FOR_EVER, "exit", "all", 5])
    assert both.codes() == [0, 0], both.everything()


def test_whoever_does_not_come_is_named(run):
    one = run(1, [*FOR_EVER, "alone", -1, -1], missing=2)
    assert one.codes() == [1], one.everything()
    assert 2 <= since(one, 0) < 2 + AT_ONCE  # one_of_many's start timeout
    said = r"processes 1, 2 did not come to (localhost:\d+) within 2 s\. On other machines \1 means"
    assert re.search(said, one.err(0))


def test_who_runs_something_else_is_refused(run):
    both = run(2, [*CHILD], own={0: ["as listed", 1, ""], 1: ["another jax", 1, ""]})
    assert both.codes() == [2, 2], both.everything()
    for index in range(2):
        for line in (
            "process 1: order: got another jax, expected as listed, as on process 0",
            f"process 1: version of jax: got 0.0.1, expected {jax.__version__}, as on process 0",
        ):
            assert line in both.err(index)


# The trainer.


@pytest.fixture
def training(tmp_path) -> list[object]:
    """A command line that trains something small on four devices."""
    text = tmp_path / "text"
    text.mkdir()
    for i in range(20):
        (text / f"m{i}.py").write_text(f"def f{i}(x):\n    return x + {i**3}\n" * 20)
    config = dict(
        model=dict(layers=1, width=16, heads=2),
        data=dict(path=str(text), pattern="*.py", held_out_fraction=0.3, sequence_length=16),
        optimizer=dict(warmup_steps=10),
        pipeline=dict(ranks=2, data=2, microbatches=2),
        trainer=dict(steps=120, log_interval=15, eval_batches=2, checkpoint_interval=60),
        run=dict(directory=str(tmp_path / "runs")),
    )
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    return [sys.executable, "-m", "jaxpipe", "train", tmp_path / "config.yaml"]


def metrics_of(folder: Path) -> dict[int, dict[str, float]]:
    """What must not depend on time, by step."""
    found: dict[int, dict[str, float]] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        found.setdefault(json.loads(line)["step"], {}).update(json.loads(line))
    passing = {"time", "seconds", "tokens_per_second", "process_memory_bytes"}
    return {s: {k: v for k, v in m.items() if k not in passing} for s, m in found.items()}


def test_two_processes_train_stop_and_resume_as_one(run, training, tmp_path):
    training = [*training, "--trainer.spike", "1.02", "--trainer.spike-action", "skip"]
    alone = run(1, [*training, "--run.name", "alone", "--metrics.no-timeline"])
    assert alone.codes() == [0], alone.everything()
    both = run(2, [*training, "--run.name", "both"])
    both.wait_for("step   1/120")
    both.processes[1].send_signal(signal.SIGTERM)
    asked = time.monotonic()
    assert both.codes(within=60) == [0, 0], both.everything()
    print(f"stopped after {time.monotonic() - asked:.2f} s")
    assert "the same command goes on from the checkpoint" in both.out(0)[-1]
    assert "stopping after this step" in both.err(1)
    assert "process 1 was asked to stop" in both.err(0)
    again = run(2, [*training, "--run.name", "both"])
    assert again.codes() == [0, 0], again.everything()
    assert "resuming from step" in "\n".join(again.out(0))
    assert both.out(1) == again.out(1) == []
    assert again.out(0)[-2] == alone.out(0)[-2]  # the held-out loss
    one, two = (metrics_of(tmp_path / "runs" / name) for name in ("alone", "both"))
    assert len(one) > 8
    assert one.items() <= two.items()  # and evaluations where it was stopped
    assert any("skipped" in metrics for metrics in one.values())
    files = {path.name.split(".")[0] for path in (tmp_path / "runs" / "both").iterdir()}
    assert {"checkpoints", "config", "env", "events", "history", "metrics", "summary"} <= files
    for index in range(2):  # each process has its log, also those that print nothing
        log = (tmp_path / "runs" / "both" / "log" / f"host_{index}.txt").read_text()
        assert "resuming from step" in log and "step 120  held-out loss" in log
    assert not {"hang", "watch", "crashes"} & files
    # Each process has timed one rank, and they have put that together.
    step = StepRecord.read(tmp_path / "runs" / "both" / "timeline.json")
    assert step is not None and step.hosts == (platform.node(),) * 2
    for timeline in step.measured:
        assert timeline.starts.keys() == step.schedule.ticks().keys()
        assert 0 < timeline.makespan < 5 and 0 <= timeline.bubble_fraction < 1
    assert len(step.measured) == 2


OUT_OF_MEMORY = """
import sys
import jax
from jaxpipe.cli.main import main
from jaxpipe.machine import Machine

own = Machine.train_batch

def train_batch(self, state, batch):
    if jax.process_index() == 1:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.")
    return own(self, state, batch)

Machine.train_batch = train_batch
sys.exit(main(["train", *sys.argv[1:]]))
"""


def test_where_one_has_too_little_memory_all_end_and_say_what_to_do(run, training):
    both = run(2, [sys.executable, "-c", OUT_OF_MEMORY, *training[4:]])
    assert both.codes(within=60) == [2, 2], both.everything()
    for index in range(2):
        assert "RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes." in both.err(index)
        assert "more pipeline.ranks or pipeline.microbatches" in both.err(index)
    assert "process 1" in both.err(0)


def test_another_configuration_on_one_process_is_refused(run, training):
    both = run(2, training, own={1: ["--optimizer.learning-rate", "0.5"]})
    assert both.codes() == [2, 2], both.everything()
    expected = "optimizer.learning_rate: got 0.5, expected 0.003, as on process 0"
    for index in range(2):
        assert f"process 1: configuration: {expected}" in both.err(index)
        assert both.out(index) == []


# What launchers say.

SLURM = dict(
    SLURM_JOB_ID="4100", SLURM_STEP_NODELIST="gpu[07-08]", SLURM_STEP_TASKS_PER_NODE="4(x2)",
    SLURM_NTASKS="8", SLURM_PROCID="5", SLURM_LOCALID="1",
)  # fmt: skip
OPEN_MPI = dict(
    OMPI_COMM_WORLD_SIZE="2", OMPI_COMM_WORLD_RANK="1", OMPI_COMM_WORLD_LOCAL_SIZE="2",
    OMPI_COMM_WORLD_LOCAL_RANK="1", PMIX_NAMESPACE="prterun-x-1@1",
)  # fmt: skip
BY_HAND = dict(JAX_COORDINATOR_ADDRESS="a:1", JAX_NUM_PROCESSES="4", JAX_PROCESS_ID="3")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        (BY_HAND, ("a:1", 4, 3, None)),
        (BY_HAND | {"JAX_NUM_PROCESSES": "1"}, None),
        (SLURM, ("gpu07:61444", 8, 5, 1)),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1(x8)"}, ("gpu07:61444", 8, 5, None)),
        (SLURM | {"CUDA_VISIBLE_DEVICES": "3"}, ("gpu07:61444", 8, 5, None)),
        (SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        (SLURM | {"JAX_COORDINATOR_ADDRESS": "b:2"}, ("b:2", 8, 5, 1)),
        ({k: v for k, v in SLURM.items() if k != "SLURM_STEP_NODELIST"}, None),  # not by srun
        (OPEN_MPI, ("localhost:62122", 2, 1, 1)),
        ({"JOB_COMPLETION_INDEX": "2"}, None),  # perhaps a sweep
        (
            {"JOB_COMPLETION_INDEX": "2", "JAX_NUM_PROCESSES": "4"} | {ADDRESS: "j-0-0.j:80"},
            ("j-0-0.j:80", 4, 2, None),
        ),
    ],
)
def test_the_launcher_says_who_is_who(environ, expected):
    assert find_place(Launch(), environ) == (expected and Place(*expected))


@pytest.mark.parametrize(
    ("launch", "environ", "part"),
    [
        (Launch(count=2), {}, "set --processes.address (JAX_COORDINATOR_ADDRESS) and"),
        (Launch(), OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, "set --processes.address"),
        (Launch(index=4), BY_HAND, "got process index 4 of 4; expected 0 to 3"),
        (Launch("here"), BY_HAND, "got the address 'here' of process 0; expected HOST:PORT"),
        (Launch(), BY_HAND | {"JAX_PROCESS_ID": "x"}, "JAX_PROCESS_ID: got 'x'"),
    ],
)
def test_what_makes_no_sense_is_refused(launch, environ, part):
    with pytest.raises(ProcessError, match=re.escape(part)):
        find_place(launch, environ)


def test_a_wrong_address_is_said():
    began, hint = time.monotonic(), r"\. On other machines localhost:\d+ means these themselves"
    launch = Launch(f"localhost:{free_port()}", 2, 1, start_timeout=0.2)
    with pytest.raises(ProcessError, match=f"process 1 of 2 cannot reach process 0.*{hint}"), \
            start_processes(launch):  # fmt: skip
        pass
    assert 0.2 <= time.monotonic() - began < 0.2 + AT_ONCE
    assert Place("host-a:80", 2, 1, None).hint == ""


def test_another_service_at_the_address_is_no_process_of_ours():
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer():
            with other.accept()[0] as connection:
                connection.sendall(b"HTTP/1.1 400\n")

        threading.Thread(target=answer).start()
        launch = Launch(f"localhost:{other.getsockname()[1]}", 2, 1, start_timeout=5)
        with (
            pytest.raises(ProcessError, match="another process of jaxpipe"),
            start_processes(launch),
        ):
            pass


def test_one_process_alone_needs_nothing():
    with start_processes(Launch()) as processes:
        assert (processes.index, processes.count, processes.is_first) == (0, 1, True)
        processes.compare({"anything": "at all"})
        assert processes.share(3) == 3
        assert processes.stop_together(True) and not processes.stop_together(False)


@pytest.mark.parametrize(
    ("index", "count", "said"),
    [
        (1, 3, "process 1 is one of 3 processes, but process 0 one of 2"),
        (0, 2, "process 0 is there twice; each process needs an index of its own"),
    ],
)
def test_processes_that_count_themselves_unlike_are_refused(index, count, said):
    port = free_port()
    hub = Hub(socket.create_server(("127.0.0.1", port)), 2, 30, 1)
    with socket.create_connection(("localhost", port)) as first:  # a member would end these tests
        first.sendall(b'{"hello": 0, "of": 2}\n')
        assert b"welcome" in first.recv(100)
        place = Place(f"localhost:{port}", count, index, None)
        with pytest.raises(ProcessError, match=f"not let in at localhost:{port}: {said}"):
            connect(place, hub, timeout=30, beat=1, patience=30)


def test_processes_that_read_the_same_shard_are_told():
    free = free_port()
    hub = Hub(socket.create_server(("127.0.0.1", free)), 2, 30, 1)
    join = lambda index: connect(
        Place(f"localhost:{free}", 2, index, None), hub, timeout=30, beat=1, patience=30
    )
    groups = [Processes(join(index)) for index in range(2)]
    whole = np.arange(16).reshape(4, 4)

    def compared(*parts: slice) -> list[str]:
        """What each is told, where it is to give half and has these rows."""
        with ThreadPoolExecutor() as pool:
            run = lambda i: groups[i].compare_rows(
                slice(2 * i, 2 * i + 2), [dict(inputs=whole[parts[i]])]
            )
            errors = [pool.submit(run, i).exception for i in range(2)]
            return [str(error()) for error in errors]

    assert compared(slice(0, 2), slice(2, 4)) == ["None", "None"]
    for said in compared(slice(0, 2), slice(0, 2)):
        assert "processes 0 and 1 give the same rows, as rows 0 to 1 and 2 to 3" in said
    assert row_problems([Rows(0, 2, ["a", "b"]), Rows(0, 2, ["a", "c"])]) != []


def test_a_run_compares_rows_before_it_computes_anything(tmp_path, text):
    class Suspicious(Processes):
        """They find that they read the same shard."""

        def compare_rows(self, rows, batches):
            seen.append((rows, [batch["inputs"] for batch in batches]))
            raise ProcessError("processes 0 and 1 give the same rows")

    seen: list[Any] = []
    engine: Any = pretended()
    engine = engine._replace(init=lambda *_: pytest.fail("it has begun"))
    config = a_config(tmp_path)
    with pytest.raises(ProcessError, match="the same rows"):
        trained(config, engine, processes=Suspicious())
    [(rows, batches)] = seen
    assert rows == slice(0, config.trainer.batch_size)
    expected = batches_of(config, dataset_of(config), rows)
    for number, batch in zip((1, 2), batches, strict=True):
        np.testing.assert_array_equal(batch, expected[number]["inputs"])


def test_the_majority_is_right():
    facts = [dict(seed="1", text="x"), dict(seed="2", text="x"), dict(seed="2", text="y")]
    assert differences(facts) == [
        "process 0: seed: got 1, expected 2, as on process 1",
        "process 2: text: got y, expected x, as on process 0",
    ]


# What the documents and templates say.


def test_the_documents_lines_train_with_two_processes(tmp_path):
    page = (REPOSITORY / "docs" / "many-hosts.md").read_text()
    [line] = re.findall(r"^```sh\n(export JAX_COORDINATOR_ADDRESS=.*?)^```$", page, re.M | re.S)
    text = tmp_path / "text"
    text.mkdir()
    for i in range(20):
        (text / f"m{i}.py").write_text(f"x = {i}\n" * 100)
    smaller = (
        "--model.layers 2 --model.width 16 --trainer.steps 2 --trainer.eval-batches 1"
        f" --optimizer.warmup-steps 1 --data.sequence-length 16 --data.path {text}"
        " --data.pattern '*.py' --metrics.no-timeline --metrics.no-tensorboard"
    )
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    command = tmp_path / "jaxpipe"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m jaxpipe "$@" {smaller}\n')
    command.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", line.replace("9876", str(free_port()))],
        cwd=tmp_path, env=environment(PATH=path), capture_output=True, text=True,
        timeout=PATIENCE,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout.count("after step 2") == 1
    assert (tmp_path / "runs" / "gpt-stdlib" / "checkpoints" / "step_00000002").is_dir()


LAUNCH = REPOSITORY / "examples" / "launch"


@pytest.mark.parametrize("name", ["slurm.sbatch", "mpirun.sh"])
def test_scripts_are_bash_and_start_a_run(name):
    subprocess.run(["bash", "-n", LAUNCH / name], check=True)
    text = (LAUNCH / name).read_text().replace("\\\n", "")
    [options] = re.findall(r'^ *(?:srun|mpirun) .*jaxpipe train "\$1" (.*)$', text, re.M)
    assert_options_exist(options)


def test_the_jobset_starts_as_many_processes_as_it_says():
    jobset = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    assert (jobset["kind"], jobset["apiVersion"]) == ("JobSet", "jobset.x-k8s.io/v1alpha2")
    [job] = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    [container] = spec["template"]["spec"]["containers"]
    environ = {entry["name"]: entry["value"] for entry in container["env"]}
    place = find_place(Launch(), environ | {"JOB_COMPLETION_INDEX": "3"})
    name = jobset["metadata"]["name"]
    assert place == Place(f"{name}-{job['name']}-0-0.{name}:9876", spec["completions"], 3, None)
    assert spec["parallelism"] == spec["completions"]
    assert spec["completionMode"] == "Indexed"
    [command] = container["args"]
    assert_options_exist(command.removeprefix("exec jaxpipe train configs/gpt-stdlib.yaml "))


def assert_options_exist(options: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Train, "run", lambda self: 17)
        assert cli.main(["train", str(SHIPPED), *options.split()]) == 17


def test_every_template_is_tested():
    assert sorted(path.name for path in LAUNCH.iterdir()) == [
        "jobset.yaml", "mpirun.sh", "slurm.sbatch",
    ]  # fmt: skip
