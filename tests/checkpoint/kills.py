"""Kills processes that save, at any moment, again and again, and looks what is left.

    python tests/checkpoint/kills.py --kills 200 --processes 2

Each run goes on from the newest checkpoint, checks every number of it, and saves in a loop. Ends
with an error if a checkpoint that was finished before a kill is not there after it, if what is
loaded is not what was saved, or if a run does not find its way back.
"""

import argparse
import os
import random
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jaxpipe as jp
from jaxpipe.checkpoint import Checkpoints

WIDTH, LAYERS = 64, 8
PATIENCE = 120  # seconds


def a_model() -> jp.PipelineModule:
    layers = [jp.LayerSpec(nn.Dense, WIDTH)] * LAYERS
    return jp.PipelineModule(layers, lambda y, batch: jnp.mean(y**2))


def logical(step: int) -> dict[str, Any]:
    """What the model is after a step: every number says which."""
    size = WIDTH * WIDTH
    kernel = lambda i: np.arange(size, dtype=np.float32).reshape(WIDTH, WIDTH) + step * LAYERS + i
    return {
        f"{i:02d}_Dense": {"kernel": kernel(i), "bias": np.full(WIDTH, step, np.float32)}
        for i in range(LAYERS)
    }


def save_for_ever(folder: Path, index: int, count: int, port: int, say: Any) -> None:
    """A process that saves; says `resumed N` once, and `saved N` when a checkpoint is finished."""
    if count > 1:
        jax.config.update("jax_num_cpu_devices", 2)
        jax.distributed.initialize(f"localhost:{port}", count, index)
    else:
        jax.config.update("jax_num_cpu_devices", 4)
    batch = {"inputs": np.ones((4, WIDTH), np.float32)}
    engine = jp.initialize(a_model(), mesh=jp.make_mesh(pipe=2, data=2), num_microbatches=2, zero=3)
    engine.partition(batch)
    with Checkpoints(folder) as checkpoints:
        checkpoints.open()
        step, damaged = checkpoints.newest()
        assert not damaged, damaged
        if step is not None:
            like = {"params": engine.abstract_state(batch).params, "step": np.int32(0)}
            state = checkpoints.restore(step, like)
            assert int(state["step"]) == step
            jax.tree.map(
                np.testing.assert_array_equal, engine.logical(state["params"]), logical(step)
            )
        say(f"resumed {step or 0}")
        while True:
            step = (step or 0) + 1
            params = engine.place(logical(step))
            checkpoints.save(step, {"params": params, "step": np.int32(step)})
            del params  # a train step would take the buffers
            checkpoints.wait()
            assert not (found := checkpoints.failures()), found
            say(f"saved {step}")


class Run:
    """Processes that save, and what the first of them has said."""

    def __init__(self, folder: Path, count: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        reader, writer = os.pipe()
        self.pids = []
        for index in range(count):
            pid = os.fork()
            if pid == 0:
                os.close(reader)
                for stream in (1, 2):  # Gloo and JAX have much to say when others die
                    os.dup2(
                        os.open(folder.parent / f"{index}.log", os.O_WRONLY | os.O_CREAT), stream
                    )
                heard = index == 0
                say = lambda line, heard=heard: heard and os.write(writer, f"{line}\n".encode())
                try:
                    save_for_ever(folder, index, count, port, say)
                except BaseException as error:
                    os.write(writer, f"failed {index}: {error!r}\n".encode())
                finally:
                    os._exit(1)
            self.pids.append(pid)
        os.close(writer)
        os.set_blocking(reader, False)
        self._reader, self._text = reader, ""

    def heard(self) -> list[str]:
        """All lines so far."""
        try:
            while data := os.read(self._reader, 2**16):
                self._text += data.decode()
        except BlockingIOError:
            pass
        return self._text.splitlines()

    def wait_for(self, word: str) -> int:
        """The number that follows a word in what the first process says."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            for line in self.heard():
                assert not line.startswith("failed"), self._text
                if line.startswith(word):
                    return int(line.split()[1])
            time.sleep(0.002)
        raise TimeoutError(f"nobody has {word} after {PATIENCE} s: {self._text}")

    def kill(self, rng: random.Random) -> list[str]:
        """Kills one, and the others shortly after; what was said until then."""
        rng.shuffle(self.pids)
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)
            time.sleep(rng.choice((0, 0, 0.05)))
        for pid in self.pids:
            os.waitpid(pid, 0)
        lines = self.heard()  # a process may have failed because another was killed
        os.close(self._reader)
        return lines


def kill_again_and_again(folder: Path, kills: int, processes: int, seed: int = 0) -> str:
    """Does it, and says how it went."""
    rng, finished, unfinished, saves = random.Random(seed), 0, 0, 0
    began = time.monotonic()
    for _ in range(kills):
        run = Run(folder, processes)
        resumed = run.wait_for("resumed")
        assert resumed >= finished, f"resumed from {resumed}, but {finished} was finished"
        time.sleep(rng.uniform(0, 0.6))
        said = [int(line.split()[1]) for line in run.kill(rng) if line.startswith("saved")]
        saves += len(said)
        finished = max([resumed, *said])
        unfinished += any(not (path / "MANIFEST.json").exists() for path in folder.glob("step_*"))
    run = Run(folder, processes)
    resumed = run.wait_for("resumed")
    run.kill(rng)
    assert resumed >= finished
    return (
        f"{kills} kills of {processes} process(es), {unfinished} of them in the middle of a save:"
        f" {kills} resumes, {saves} finished saves, none lost"
        f" ({time.monotonic() - began:.0f} s)"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "checkpoints"
        print(kill_again_and_again(folder, arguments.kills, arguments.processes, arguments.seed))
    sys.exit(0)
