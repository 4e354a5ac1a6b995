"""Runs equations on arrays of which each device holds a piece, as if each held them whole.

The devices of one rank, over `tensor` and `data`, share its leaves (`storage.Cut`). What an
optimizer does to a leaf is mostly element by element, and then each device does it to its own
piece. Sums over a whole leaf are summed over the devices, many of them in one call. Whatever else
it does (a mean of rows, a product of matrices) it does to whole leaves, on all devices: they are
gathered one by one, and each device keeps its piece of the results.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxpipe import jaxpr as jaxprs
from jaxpipe import tensor
from jaxpipe.mesh import DATA, TENSOR
from jaxpipe.storage import Cut, in_parts
from jaxpipe.storage.parts import all_gather, take_own

Var = Any

_NAMES = """abs add and cbrt ceil clamp convert_element_type copy cos div eq erf exp exp2 expm1
    floor ge gt integer_pow is_finite le log log1p logistic lt max min mul ne neg nextafter not or
    pow reduce_precision rem round rsqrt select_n sign sin sqrt square sub tan tanh xor"""
_ELEMENTWISE = frozenset(_NAMES.split())
# What each device does to its own elements, and how the results of several devices become one.
_REDUCTIONS = {
    "reduce_sum": (jnp.sum, lax.psum),
    "reduce_max": (jnp.max, lax.pmax),
    "reduce_min": (jnp.min, lax.pmin),
}


@dataclasses.dataclass(frozen=True)
class Piece:
    """What this device holds of an array that is cut.

    Attributes:
      value: `[part size]`.
      cut: how.
    """

    value: jax.Array
    cut: Cut

    def whole(self) -> jax.Array:
        """The array, gathered from the devices of this rank."""
        x, cut = self.value, self.cut
        if cut.num_parts > 1:
            x = all_gather(x).reshape(-1)
        x = x[: cut.size].reshape(cut.piece)
        return x if cut.tensor_dim is None else tensor.join(x, cut.tensor_dim)

    def filled(self, value: Any) -> jax.Array:
        """This device's elements, with `value` in place of those that only fill up a part."""
        if self.cut.is_even:
            return self.value
        place = lax.axis_index(DATA) * self.cut.part_size + jnp.arange(self.cut.part_size)
        return jnp.where(place < self.cut.size, self.value, jnp.asarray(value, self.value.dtype))


@dataclasses.dataclass(frozen=True)
class Alike:
    """An array whose elements are all `value`, a scalar."""

    value: jax.Array
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Term:
    """This device's term of a sum (or maximum, or minimum) over the devices in `axes`."""

    value: jax.Array
    primitive: str
    axes: tuple[str, ...]


def own_piece(x: Any, cut: Cut) -> jax.Array:
    """What this device holds of a value that each device has whole, or of a piece."""
    if isinstance(x, Piece):
        if x.cut == cut:
            return x.filled(0)
        x = x.whole()
    if isinstance(x, Alike):
        return Piece(jnp.full(cut.part_size, x.value), cut).filled(0)
    if cut.tensor_dim is not None:
        x = tensor.split(x, cut.tensor_dim)
    return x.reshape(-1) if cut.num_parts == 1 else take_own(in_parts(x, cut.num_parts))


def evaluate(eqns: Sequence[Any], env: dict[Var, Any], targets: Sequence[Var]) -> list[Any]:
    """Runs equations on top of `env`, whose values are arrays or `Piece`s.

    Returns:
      The targets, arrays, `Piece`s or `Alike`s.
    """
    todo = list(eqns)
    while todo:
        later, waiting = [], set()
        for eqn in todo:
            reads = jaxprs.variables(eqn.invars)
            if reads & waiting or any(isinstance(env[v], Term) for v in reads):
                later.append(eqn)
                waiting |= set(eqn.outvars)
            else:
                _run(eqn, env)
        _total(env)
        todo = later
    literal = lambda v: jnp.asarray(jaxprs.literal_value(v), v.aval.dtype)
    return [env[v] if jaxprs.is_variable(v) else literal(v) for v in targets]


def _run(eqn: Any, env: dict[Var, Any]) -> None:
    """One equation, none of whose inputs is a term."""
    name, inputs = eqn.primitive.name, [_input(v, env) for v in eqn.invars]
    pieces, out = [x for x in inputs if isinstance(x, Piece)], eqn.outvars[0].aval
    if not pieces and not any(isinstance(x, Alike) for x in inputs):
        if name == "broadcast_in_dim" and not jnp.shape(inputs[0]) and len(inputs) == 1:
            env[eqn.outvars[0]] = Alike(jnp.asarray(inputs[0], out.dtype), out.shape)
            return
        _bind(eqn, inputs, env)
        return
    if name in _ELEMENTWISE and _fits(inputs, out.shape):
        cut = pieces[0].cut if pieces else None
        _bind(eqn, [_beside(x, cut) for x in inputs], env)
        for v in eqn.outvars:
            env[v] = Piece(env[v], cut) if cut is not None else Alike(env[v], v.aval.shape)
        return
    if name in _REDUCTIONS and pieces and len(eqn.params["axes"]) == len(pieces[0].cut.shape):
        env[eqn.outvars[0]] = _term(eqn, pieces[0])
        return
    _bind(eqn, [whole(x) for x in inputs], env)


def _input(v: Var, env: dict[Var, Any]) -> Any:
    return env[v] if jaxprs.is_variable(v) else jaxprs.literal_value(v)


def _bind(eqn: Any, inputs: Sequence[Any], env: dict[Var, Any]) -> None:
    """Runs an equation on arrays."""
    given = {v: x for v, x in zip(eqn.invars, inputs, strict=True) if jaxprs.is_variable(v)}
    jaxprs.evaluate([eqn], given, [])
    env.update((v, given[v]) for v in eqn.outvars)


def _fits(inputs: Sequence[Any], shape: tuple[int, ...]) -> bool:
    """Whether all pieces are cut alike, and all else is of the result's shape, or scalar."""
    cuts = {x.cut for x in inputs if isinstance(x, Piece)}
    others = [x for x in inputs if not isinstance(x, Piece)]
    alike = all(jnp.shape(x) == () for x in others if not isinstance(x, Alike))
    if not cuts:
        return alike
    (cut, *more) = cuts
    return not more and cut.shape == shape and all(_shape(x) in ((), shape) for x in others)


def _shape(x: Any) -> tuple[int, ...]:
    return x.shape if isinstance(x, Alike) else jnp.shape(x)


def _beside(x: Any, cut: Cut | None) -> Any:
    """An input of an element by element operation, next to pieces that are cut so."""
    if isinstance(x, Piece):
        return x.value
    if isinstance(x, Alike):
        return x.value if cut is None else jnp.full(cut.part_size, x.value)
    return x if cut is None or jnp.shape(x) == () else own_piece(x, cut)


def whole(x: Any) -> Any:
    """Any value as an array."""
    if isinstance(x, Alike):
        return jnp.full(x.shape, x.value)
    return x.whole() if isinstance(x, Piece) else x


def _term(eqn: Any, piece: Piece) -> Term:
    """This device's part of a sum over all of an array."""
    name, cut = eqn.primitive.name, piece.cut
    reduce, _ = _REDUCTIONS[name]
    axes = (*((TENSOR,) if cut.num_tensor > 1 else ()), *((DATA,) if cut.num_parts > 1 else ()))
    own = reduce(piece.filled(_neutral(name, piece.value.dtype)))
    return Term(own.astype(eqn.outvars[0].aval.dtype), name, axes)


def _neutral(name: str, dtype: Any) -> Any:
    """What changes no sum, maximum or minimum."""
    if name == "reduce_sum":
        return 0
    is_float = jnp.issubdtype(dtype, jnp.floating)
    low, high = (-jnp.inf, jnp.inf) if is_float else (jnp.iinfo(dtype).min, jnp.iinfo(dtype).max)
    return low if name == "reduce_max" else high


def _total(env: dict[Var, Any]) -> None:
    """Adds up all terms that are known, those of the same devices in one call."""
    groups: dict[tuple[str, tuple[str, ...]], list[Var]] = {}
    for v, x in env.items():
        if isinstance(x, Term):
            groups.setdefault((x.primitive, x.axes), []).append(v)
    for (name, axes), variables in groups.items():
        _, combine = _REDUCTIONS[name]
        totals = combine([env[v].value for v in variables], axes)
        env.update(zip(variables, totals, strict=True))
