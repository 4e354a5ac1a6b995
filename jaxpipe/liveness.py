"""How much a function holds at once, from its jaxpr: what XLA would need, before it is asked.

Equations run in their order. As in XLA, those that work element by element make no array of their
own where whoever reads them can compute them on the way; what they read then lives until there. An
array whose last reader makes one of its size is written over.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax

from jaxpipe import jaxpr as jaxprs
from jaxpipe.spec import num_bytes

# Need their operands as arrays, and make arrays; all others are fused into their readers, or are
# another view of what they read.
_ARRAYS = {
    *("dot_general", "conv_general_dilated", "ragged_dot", "sort", "top_k", "cholesky", "eigh"),
    *("triangular_solve", "lu", "qr", "svd", "fft", "scatter", "scatter-add", "scatter_add"),
    *("while", "scan", "cond", "custom_call", "ffi_call", "pallas_call", "cumsum", "cumprod"),
    *("psum", "psum_invariant", "pmax", "pmin", "all_gather", "all_gather_invariant"),
    *("reduce_scatter", "psum_scatter", "ppermute", "all_to_all", "optimization_barrier"),
    *("reduce_window", "reduce_window_sum", "reduce_window_max", "select_and_scatter_add"),
    *("random_bits", "threefry2x32"),
}
# Make arrays, of what they compute on the way.
_REDUCTIONS = {
    *("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or"),
    *("argmax", "argmin", "gather", "dynamic_update_slice", "concatenate", "reduce_precision"),
}


def peak_bytes(fn: Callable[..., tuple[Any, Any]], *args: Any) -> int:
    """Bytes that a function of abstract `args` holds at once, beside its arguments.

    Args:
      fn: `(*args) -> (held, spent)`, two trees: arrays of the first are held to the end, those of
        the second are taken away as soon as they are made, as gradients are by accumulators.
      *args: as `jax.ShapeDtypeStruct`s; on a mesh, what one device has.
    """
    closed, (held, _) = jaxprs.trace(fn, *args)
    return _peak(closed, len(jax.tree.leaves(held)))


def _peak(closed: jaxprs.ClosedJaxpr, num_held: int) -> int:
    """The most bytes at once of what a jaxpr's equations make; the first outputs stay."""
    eqns, outputs = jaxprs.merged(closed)
    reads = _reads(eqns)
    ends = _ends(eqns, jaxprs.variables(outputs), reads)
    ends = ends | {v: len(eqns) for v in jaxprs.variables(outputs[:num_held]) if v in ends}
    live: dict[Any, int] = {}
    now = most = 0
    for at, eqn in enumerate(eqns):
        made = {v: _size(v) for v in eqn.outvars if v in ends}
        if not made:
            continue
        dying = [v for v in reads[at] if ends.get(v) == at and v in live]
        sizes = sorted((live[v] for v in dying), reverse=True)
        # Element by element, the result takes the place of what is read for the last time.
        over = 0
        if eqn.primitive.name not in _ARRAYS | _REDUCTIONS:
            over = min(sizes[0], sum(made.values())) if sizes else 0
        most = max(most, now + sum(made.values()) + _inside(eqn) - over)
        live |= made
        now += sum(made.values())
        for v in dying:
            now -= live.pop(v)
        for v in made:
            if ends[v] <= at:
                now -= live.pop(v)
    return most


def _reads(eqns: Iterable[Any]) -> list[set[Any]]:
    """For each equation the arrays that it reads, through those that are fused into it."""
    eqns = list(eqns)
    whole = _arrays(eqns)
    through: dict[Any, set[Any]] = {}
    found = []
    for eqn in eqns:
        roots: set[Any] = set()
        for v in jaxprs.variables(eqn.invars):
            roots |= through.get(v, {v})
        found.append(roots)
        through |= {v: roots for v in eqn.outvars if v not in whole}
    return found


def _arrays(eqns: Iterable[Any]) -> set[Any]:
    """The variables that are arrays in memory."""
    found: set[Any] = set()
    for eqn in eqns:
        if eqn.primitive.name in _ARRAYS:
            found |= jaxprs.variables(eqn.invars)
        if eqn.primitive.name in _ARRAYS | _REDUCTIONS:
            found |= set(eqn.outvars)
    return found


def _ends(eqns: list[Any], outputs: set[Any], reads: list[set[Any]]) -> dict[Any, int]:
    """When each array is read last; what is fused away is not in it."""
    whole = _arrays(eqns) | outputs
    ends = {v: at for at, eqn in enumerate(eqns) for v in eqn.outvars if v in whole}
    for at, eqn in enumerate(eqns):
        if any(v in ends for v in eqn.outvars):
            ends |= {v: at for v in reads[at] if v in ends}
    return ends


def _inside(eqn: Any) -> int:
    """What an equation holds beside its operands and results."""
    if eqn.primitive.name == "scan":
        body = jaxprs.loop(eqn).body
        return _peak(body, len(body.jaxpr.outvars))
    return 0


def _size(v: Any) -> int:
    return num_bytes(v.aval)
