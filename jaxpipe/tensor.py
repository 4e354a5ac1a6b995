"""The `tensor` axis as a layer sees it: its size, and moves between whole and cut arrays.

Inside a pipeline every array that a layer sees is one device's own. Over the `tensor` axis it is

  whole    the same on all ranks of the axis; so is its gradient
  cut      each rank has its piece of one dim, in the order of the ranks; so with its gradient
  partial  each rank has a term, and the value is the sum of all

and each function here says what it takes to what. Outside a pipeline, where the axis is missing,
and where it has one rank, all three are the same, and these functions do nothing. The pairs are
those of Megatron-LM (arXiv:1909.08053, arXiv:2205.05198).
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator

import jax
from jax import lax

from jaxpipe.mesh import TENSOR

_unbound = contextvars.ContextVar("_unbound", default=False)


def size() -> int:
    """How many ranks share the arrays of a layer; 1 outside a pipeline."""
    if _unbound.get():
        return 1
    try:
        return int(lax.axis_size(TENSOR))
    except NameError:
        return 1


def index() -> jax.Array | int:
    """This rank's place, from 0: an int32 scalar, or 0 where there is one rank."""
    return lax.axis_index(TENSOR) if size() > 1 else 0


@contextlib.contextmanager
def unbound() -> Iterator[None]:
    """Within, layers see no `tensor` axis: parameters are made whole, and cut afterwards."""
    token = _unbound.set(True)
    try:
        yield
    finally:
        _unbound.reset(token)


def fan_out(x: jax.Array) -> jax.Array:
    """Whole -> whole, for what goes on with cut weights: the gradients come back partial."""
    return _fan_out(x) if size() > 1 else x


def sum_up(x: jax.Array) -> jax.Array:
    """Partial -> whole: the sum over the ranks."""
    return _sum_up(x) if size() > 1 else x


def all_gather(x: jax.Array, dim: int) -> jax.Array:
    """Cut along `dim` -> whole, for what goes on with cut weights: gradients come back partial."""
    return _all_gather(x, _positive(x, dim)) if size() > 1 else x


def reduce_scatter(x: jax.Array, dim: int) -> jax.Array:
    """Partial -> the sum over the ranks, cut along `dim`, which their number must divide."""
    return _reduce_scatter(x, _positive(x, dim)) if size() > 1 else x


def split(x: jax.Array, dim: int) -> jax.Array:
    """Whole -> this rank's piece of `dim`, which the number of ranks must divide."""
    return _split(x, _positive(x, dim)) if size() > 1 else x


def join(x: jax.Array, dim: int) -> jax.Array:
    """Cut along `dim` -> whole, for what goes on with whole weights."""
    return _join(x, _positive(x, dim)) if size() > 1 else x


def _positive(x: jax.Array, dim: int) -> int:
    return dim % x.ndim


_psum = functools.partial(lax.psum, axis_name=TENSOR)


def _gather(x: jax.Array, dim: int) -> jax.Array:
    return lax.all_gather(x, TENSOR, axis=dim, tiled=True)


def _scatter(x: jax.Array, dim: int) -> jax.Array:
    return lax.psum_scatter(x, TENSOR, scatter_dimension=dim, tiled=True)


def _own(x: jax.Array, dim: int) -> jax.Array:
    piece = x.shape[dim] // size()
    return lax.dynamic_slice_in_dim(x, index() * piece, piece, dim)


def _pair(
    there: Callable[[jax.Array], jax.Array], back: Callable[[jax.Array], jax.Array]
) -> Callable[[jax.Array], jax.Array]:
    """A function with a gradient of its own: what JAX would derive counts replicas twice."""
    run = jax.custom_vjp(there)
    run.defvjp(lambda x: (there(x), None), lambda _, dy: (back(dy),))
    return run


def _pair_along(
    there: Callable[[jax.Array, int], jax.Array], back: Callable[[jax.Array, int], jax.Array]
) -> Callable[[jax.Array, int], jax.Array]:
    run = jax.custom_vjp(there, nondiff_argnums=(1,))
    run.defvjp(lambda x, dim: (there(x, dim), None), lambda dim, _, dy: (back(dy, dim),))
    return run


_fan_out = _pair(lambda x: x, _psum)
_sum_up = _pair(_psum, lambda dy: dy)
_all_gather = _pair_along(_gather, _scatter)
_reduce_scatter = _pair_along(_scatter, _gather)
_split = _pair_along(_own, _gather)
_join = _pair_along(_gather, _own)
