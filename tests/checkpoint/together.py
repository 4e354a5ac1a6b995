"""One of two processes that save and load together, the second of which has bad luck.

    python tests/checkpoint/together.py FOLDER INDEX PORT

Prints a line of JSON for each thing that happened, for test_together.py.
"""

import asyncio
import errno
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import kills
import numpy as np

import jaxpipe as jp
from jaxpipe.checkpoint import checkpoints as reading
from jaxpipe.checkpoint import zarr as writing
from jaxpipe.errors import CheckpointError

PATIENCE = 5.0  # seconds
FOR_EVER = 10_000


def no_room(*_: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def stuck(*_: Any) -> Any:
    time.sleep(FOR_EVER)


def with_bad_luck(index: int, module: Any, name: str, luck: Callable[..., Any]) -> Callable:
    """Puts it into the second process, and gives what ends it."""
    well = getattr(module, name)
    bad = luck
    if asyncio.iscoroutinefunction(well):

        async def bad(*arguments: Any) -> Any:
            return luck(*arguments)

    if index == 1:
        setattr(module, name, bad)
    return lambda: setattr(module, name, well)


def said(call: Callable[[], Any]) -> str | None:
    """The error of a call, if it makes one."""
    try:
        call()
    except (CheckpointError, OSError) as error:
        return str(error)
    return None


def main(folder: Path, index: int, port: int) -> None:
    jax.config.update("jax_num_cpu_devices", 1)
    jax.distributed.initialize(f"localhost:{port}", 2, index)
    tell = lambda **facts: print(json.dumps(facts), flush=True)
    engine = jp.initialize(kills.a_model(), mesh=jp.make_mesh(pipe=2), num_microbatches=2)
    engine.partition({"inputs": np.ones((4, kills.WIDTH), np.float32)})
    state = lambda step: {"params": engine.place(kills.logical(step)), "step": jnp.int32(step)}

    with jp.Checkpoints(folder.with_name("taken"), patience=PATIENCE) as checkpoints:
        tell(taken=said(checkpoints.open))  # the test holds its lock

    checkpoints = jp.Checkpoints(folder, patience=PATIENCE)

    def save(step: int) -> None:
        checkpoints.save(step, state(step))
        checkpoints.wait()
        tell(step=step, failures=checkpoints.failures(), steps=checkpoints.steps())

    save(1)
    end = with_bad_luck(index, writing, "_write", no_room)
    save(2)
    end()
    save(3)

    end = with_bad_luck(index, reading, "load", no_room)
    tell(read=said(lambda: checkpoints.restore(3, state(0))))
    end()
    like = state(0)
    found = engine.logical(checkpoints.restore(3, like)["params"])
    jax.tree.map(np.testing.assert_array_equal, found, kills.logical(3))

    end = with_bad_luck(index, writing, "_write", stuck)
    save(4)
    end()
    save(5)

    with_bad_luck(index, reading, "load", stuck)
    began = time.monotonic()
    tell(late=said(lambda: checkpoints.restore(5, like)), seconds=time.monotonic() - began)
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
