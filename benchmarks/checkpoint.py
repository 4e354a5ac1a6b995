"""What checkpoints cost: memory of each process while saving and loading, and time of training.

    python benchmarks/checkpoint.py memory
    python benchmarks/checkpoint.py time

`memory`: a model of about 1 GB of parameters on 4 devices of 4 processes. What each process's
resident memory grows by at most, over what it was before, as a share of the largest shard.

`time`: how long `save` holds up training when it returns at once, as a share of how long it takes
until the checkpoint is there; and train steps while one is written, against others.
"""

import argparse
import ctypes
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WIDTH, LAYERS, PROCESSES = 2048, 64, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["memory", "time"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one-of", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one_of:
        index, port, folder = arguments.one_of
        one_process(int(index), int(port), Path(folder))
    elif arguments.what == "memory":
        memory()
    else:
        measure_time(arguments.rounds)


def memory() -> None:
    """Starts the processes, and waits for them."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "memory", "--one-of"]
        started = [
            subprocess.Popen([*command, str(index), str(port), folder])
            for index in range(PROCESSES)
        ]
        codes = [process.wait() for process in started]
    if any(codes):
        sys.exit(f"exit codes {codes}")


def one_process(index: int, port: int, folder: Path) -> None:
    """Saves and loads its part, and says what that took."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    jax.config.update("jax_num_cpu_devices", 1)
    jax.distributed.initialize(f"localhost:{port}", PROCESSES, index)
    import flax.linen as nn
    import jax.numpy as jnp
    import numpy as np

    import jaxpipe as jp

    model = jp.PipelineModule(
        [jp.LayerSpec(nn.Dense, WIDTH, use_bias=False)] * LAYERS, lambda y, batch: jnp.mean(y**2)
    )
    engine = jp.initialize(model, mesh=jp.make_mesh(pipe=PROCESSES), num_microbatches=4)
    batch = {"inputs": np.ones((4, WIDTH), np.float32)}
    warm = {"x": np.ones(3)}
    with jp.Checkpoints(folder / "warm") as checkpoints:  # what is loaded at the first use
        checkpoints.save(0, warm)
        checkpoints.wait()
        checkpoints.restore(0, warm)
    params: Any = engine.init(jax.random.key(0), batch).params
    jax.block_until_ready(params)
    shard = WIDTH * WIDTH * 4 * LAYERS // PROCESSES
    found = {}
    with jp.Checkpoints(folder / "c") as checkpoints:
        before = start_of_peak()
        checkpoints.save(1, {"params": params})
        checkpoints.wait()
        found["saving"] = peak() - before
        assert not checkpoints.failures()
        like = engine.abstract_state(batch).params
        want = float(jnp.sum(jnp.abs(jax.tree.leaves(params)[0].addressable_shards[0].data)))
        del params
        before = start_of_peak()
        params = jax.block_until_ready(checkpoints.restore(1, like, part="params"))
        found["loading"] = peak() - before
        assert want == float(
            jnp.sum(jnp.abs(jax.tree.leaves(params)[0].addressable_shards[0].data))
        )
    for what, size in found.items():
        print(
            f"process {index}: {what} takes {size / 2**20:.0f} MiB more, {size / shard:.2f} of its"
            f" shard of {shard / 2**20:.0f} MiB",
            flush=True,
        )


def start_of_peak() -> int:
    """Forgets the highest resident memory so far; what it is now, in bytes."""
    ctypes.CDLL(None).malloc_trim(0)  # or what was freed before would count as there already
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def peak() -> int:
    """The highest resident memory since then, in bytes."""
    return resident("VmHWM")


def resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def measure_time(rounds: int) -> None:
    """Trains with saves in the background, and with saves that are waited for."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    jax.config.update("jax_num_cpu_devices", 4)
    import numpy as np
    import optax

    import jaxpipe as jp
    from jaxpipe import nn
    from jaxpipe.models import GPTConfig, gpt

    config = GPTConfig(vocab_size=4096, width=512, num_heads=8, num_layers=8, sequence_length=64)
    engine = jp.initialize(
        jp.PipelineModule(gpt(config), nn.cross_entropy), mesh=jp.make_mesh(pipe=4),
        optimizer=optax.adamw(1e-3), num_microbatches=4,
    )  # fmt: skip
    ids = np.random.default_rng(0).integers(0, 4096, (8, 65), np.int32)
    batch = dict(inputs=ids[:, :-1], targets=ids[:, 1:])
    state = engine.init(jax.random.key(0), batch)
    times: dict[str, list[float]] = {
        name: [] for name in ("save", "until there", "beside", "alone")
    }

    def step(state: jp.TrainState, name: str | None = None) -> jp.TrainState:
        began = time.perf_counter()
        state, _ = engine.train_batch(state, batch)
        jax.block_until_ready(state)
        if name:
            times[name].append(time.perf_counter() - began)
        return state

    with tempfile.TemporaryDirectory() as folder, jp.Checkpoints(folder) as checkpoints:
        state = step(step(state))
        for number in range(rounds):
            began = time.perf_counter()
            checkpoints.save(2 * number, state)
            if number:
                times["save"].append(time.perf_counter() - began)
            state = step(state, "beside")
            checkpoints.wait()
            for _ in range(2):
                state = step(state, "alone")
            began = time.perf_counter()
            checkpoints.save(2 * number + 1, state)
            checkpoints.wait()
            if number:
                times["until there"].append(time.perf_counter() - began)
        size = checkpoints.manifest(2 * rounds - 1).num_bytes
        assert not checkpoints.failures()
    middle = {name: statistics.median(found) for name, found in times.items()}
    print(
        f"checkpoints of {size / 2**20:.0f} MiB, medians of {rounds - 1} rounds\n"
        f"save holds training up for {middle['save']:.2f} s,"
        f" {middle['save'] / middle['until there']:.2f} of the {middle['until there']:.2f} s that a"
        " blocking save takes\n"
        f"a train step beside a save takes {middle['beside'] / middle['alone']:.2f} of one alone"
    )


if __name__ == "__main__":
    main()
