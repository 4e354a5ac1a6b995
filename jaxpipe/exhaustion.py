"""What to say when a device has run out of memory."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from jaxpipe.batch import Batch
from jaxpipe.engine import Engine
from jaxpipe.errors import JaxpipeError, OutOfMemoryError

_EXHAUSTED = "RESOURCE_EXHAUSTED"  # the status that XLA gives, compiling or running
_PARTS = ["parameters", "optimizer", "batch", "weights", "gradients", "residuals", "mail", "work"]


@contextlib.contextmanager
def memory_explained(engine: Engine, batch: Batch) -> Iterator[None]:
    """Within, an error of XLA's for want of memory says what a step needs, and what to do.

    Args:
      engine: whose functions are called within.
      batch: that they are called with, or one of its shapes.

    Raises:
      OutOfMemoryError: instead of such an error, which is its cause.

    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if _EXHAUSTED not in str(error):
            raise
        lines = [
            f"a device has too little memory: {str(error).splitlines()[0]}",
            *_needs(engine, batch),
            *devices_in_words(engine.mesh, engine.schedule.placement),
            "Take more pipeline.ranks or pipeline.microbatches, pipeline.remat, pipeline.zero, or a"
            " smaller batch. Engine.memory counts beforehand what each of them takes.",
        ]
        raise OutOfMemoryError("\n  ".join(lines)) from error


def _needs(engine: Engine, batch: Batch) -> Iterator[str]:
    """What a train step takes on each device, if that can be counted."""
    with contextlib.suppress(JaxpipeError, jax.errors.JaxRuntimeError, AttributeError):
        memory = engine.memory(batch)
        parts = ", ".join(f"{part} {_gib(getattr(memory, part))}" for part in _PARTS)
        yield f"a train step is to take about {_gib(memory.total)} on each device: {parts}."


def devices_in_words(
    mesh: Mesh, placement: Sequence[int], shown: Sequence[Any] | None = None
) -> Iterator[str]:
    """How full this process's devices are, a line for each that says so.

    Args:
      mesh: that they belong to.
      placement: the rank of each stage.
      shown: what to take for its devices, in its order.
    """
    devices = mesh.devices.flat if shown is None else shown
    for place, device in enumerate(devices):
        if device.process_index != jax.process_index() or not (stats := device.memory_stats()):
            continue
        rank = place // (mesh.size // mesh.shape["pipe"])
        used, limit = stats.get("peak_bytes_in_use", 0), stats.get("bytes_limit", 0)
        stages = [str(stage) for stage, at in enumerate(placement) if at == rank]
        words = f"stage{'s' * (len(stages) != 1)} {', '.join(stages)}"
        yield f"rank {rank} ({words}), {device}: {_gib(used)} in use at most, of {_gib(limit)}."


def _gib(count: int) -> str:
    """Bytes in words.

    >>> _gib(3 * 2**30), _gib(5 * 2**20)
    ('3.00 GiB', '5.00 MiB')
    """
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:,} bytes"
