"""What the devices that share layers say to each other, read from what stages compute."""

import math
from collections.abc import Callable
from typing import Any

from jax.sharding import Mesh

from jaxpipe import jaxpr as jaxprs
from jaxpipe.mesh import TENSOR, axis_size, traced_on

_SUMS = ("psum", "psum_invariant", "pmax", "pmin")
_GATHERS = ("all_gather", "all_gather_invariant")
_SCATTERS = ("reduce_scatter", "psum_scatter")


def exchanged_bytes(fn: Callable[..., Any], *args: Any, mesh: Mesh) -> float:
    """Bytes that a device sends over `tensor` while `fn` runs on abstract `args`, by ring.

    Of n devices, a sum of an array sends 2 (n - 1) / n of it, a gather or a scatter of sums
    (n - 1) / n of what is whole (Patarasuk and Yuan, 2009).
    """
    ranks = axis_size(mesh, TENSOR)
    if ranks == 1:
        return 0.0
    closed = traced_on(mesh, lambda: jaxprs.trace(fn, *args)[0])
    return _sent(closed) * (ranks - 1) / ranks


def _sent(closed: jaxprs.ClosedJaxpr) -> float:
    """The bytes of whole arrays, those of sums twice."""
    total = 0.0
    for eqn in closed.jaxpr.eqns:
        name = eqn.primitive.name
        if name == "scan":
            loop = jaxprs.loop(eqn)
            total += loop.length * _sent(loop.body)
        elif TENSOR in jaxprs.axes(eqn):
            if name in _SUMS:
                total += 2 * sum(map(_bytes, eqn.outvars))
            elif name in _GATHERS:
                total += sum(map(_bytes, eqn.outvars))
            elif name in _SCATTERS:
                total += sum(map(_bytes, eqn.invars))
    return total


def _bytes(v: Any) -> int:
    return math.prod(v.aval.shape) * v.aval.dtype.itemsize
