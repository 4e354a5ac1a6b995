"""How fast devices talk: a ring of neighbours, and a sum over all."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

_AXIS = "ring"
_SMALL, _LARGE = 2**10, 2**22  # float32s: 4 KiB and 16 MiB
_TRIES = 5


class Link(NamedTuple):
    """What was measured of one pattern of communication.

    Attributes:
      what: the pattern.
      latency: seconds of a small message.
      bandwidth: bytes per second that each device sends with a large one.
    """

    what: str
    latency: float
    bandwidth: float


def measure_links(devices: Sequence[Any]) -> tuple[Link, ...]:
    """Between these devices, two or more: each to the next one, and the sum of all."""
    count = len(devices)
    mesh = Mesh(np.array(devices), (_AXIS,), axis_types=(AxisType.Auto,))
    ring = [(i, (i + 1) % count) for i in range(count)]
    patterns: dict[str, tuple[Callable[[jax.Array], jax.Array], float]] = {
        "each to the next": (lambda x: lax.ppermute(x, _AXIS, ring), 1.0),
        # By ring each device sends 2 (n - 1) / n of the array (Patarasuk and Yuan, 2009).
        "sum of all": (lambda x: lax.psum(x, _AXIS), 2 * (count - 1) / count),
    }
    found = []
    for what, (fn, share) in patterns.items():
        small, large = (_seconds(fn, mesh, size) for size in (_SMALL, _LARGE))
        found.append(Link(what, small, share * 4 * _LARGE / large))
    return tuple(found)


def _seconds(fn: Callable[[jax.Array], jax.Array], mesh: Mesh, size: int) -> float:
    """The median time of a call with `size` float32s on each device."""
    spec = PartitionSpec(_AXIS)
    run = jax.jit(jax.shard_map(fn, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))
    x = jax.device_put(jnp.zeros(size * mesh.size), NamedSharding(mesh, spec))
    jax.block_until_ready(run(x))
    taken = []
    for _ in range(_TRIES):
        start = time.perf_counter()
        jax.block_until_ready(run(x))
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)
