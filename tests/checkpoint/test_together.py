"""Two real processes save and load together, and one of them fails or gets stuck."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from children import environment
from together import PATIENCE  # pyright: ignore[reportMissingImports]

import jaxpipe as jp

HERE = Path(__file__).parent
DEADLINE = 200  # seconds


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("together") / "checkpoints"


@pytest.fixture(scope="module")
def told(folder) -> list[list[dict[str, Any]]]:
    """What the processes have said, each a list of facts."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    names = [[str(folder.parent / f"{i}.{kind}") for kind in ("out", "err")] for i in range(2)]
    with jp.Checkpoints(folder.with_name("taken")) as taken, contextlib.ExitStack() as files:
        taken.open()
        processes = []
        for index, paths in enumerate(names):
            out, err = (files.enter_context(open(path, "w")) for path in paths)
            command = [sys.executable, HERE / "together.py", folder, str(index), str(port)]
            processes.append(subprocess.Popen(command, stdout=out, stderr=err, env=environment()))
        try:
            processes[0].wait(DEADLINE)
            time.sleep(0.5)
        finally:
            for process in processes:  # the second one is stuck at the end
                process.kill()
                process.wait()
    assert processes[0].returncode == 0, "".join(Path(path).read_text() for _, path in names)
    said = [Path(path).read_text().splitlines() for path, _ in names]
    return [[json.loads(line) for line in lines if line.startswith("{")] for lines in said]


def of_step(told: list[list[dict[str, Any]]], step: int) -> list[dict[str, Any]]:
    return [next(fact for fact in facts if fact.get("step") == step) for facts in told]


def about(told: list[list[dict[str, Any]]], name: str) -> list[str]:
    return [fact[name] for facts in told for fact in facts if name in fact]


def test_a_folder_that_is_taken_is_refused_to_both(told):
    first, second = about(told, "taken")
    assert first == second
    assert "is being written to by" in first and str(os.getpid()) in first


def test_where_one_cannot_write_nobody_commits_and_both_know_why(told):
    for process in of_step(told, 2):
        [failure] = process["failures"]
        assert "process 1: OSError" in failure and "No space left" in failure
        assert process["steps"] == [1]
    for process in of_step(told, 3):
        assert process["failures"] == [] and process["steps"] == [1, 3]


def test_where_one_cannot_read_neither_goes_on(told):
    first, second = about(told, "read")
    assert "another process could not read" in first and "No space left" in second


def test_who_never_finishes_to_write_is_named_and_training_goes_on(told):
    for process in of_step(told, 4):
        [failure] = process["failures"]
        assert f"process 1 did not finish its part within {PATIENCE:g} s" in failure
        assert process["steps"] == [1, 3]
    for process in of_step(told, 5):
        assert process["failures"] == [] and process["steps"] == [3, 5]


def test_who_never_finishes_to_read_is_named(told):
    [late] = about(told, "late")
    assert f"process 1 has not read step 5 within {PATIENCE:g} s" in late
    [seconds] = about(told, "seconds")
    assert PATIENCE <= float(seconds) < 2 * PATIENCE


def test_what_two_processes_wrote_one_reads(told, folder):
    import kills  # pyright: ignore[reportMissingImports]

    engine = jp.initialize(kills.a_model(), mesh=jp.make_mesh(pipe=4), num_microbatches=2)
    engine.partition({"inputs": np.ones((4, kills.WIDTH), np.float32)})
    like = {"params": engine.place(kills.logical(0)), "step": jnp.int32(0)}
    with jp.Checkpoints(folder) as checkpoints:
        assert checkpoints.newest() == (5, [])
        found = checkpoints.restore(5, like)
    for name, layer in kills.logical(5).items():
        for leaf, want in layer.items():
            np.testing.assert_array_equal(engine.logical(found["params"])[name][leaf], want)
