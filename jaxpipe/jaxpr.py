"""The one door to JAX's semi-public parts: reading and slicing jaxprs.

`jax.extend` and `jax.interpreters` promise no stability, so nothing else imports them; this file is
tested on the oldest and the newest JAX that the package supports.
"""

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core as jex

ClosedJaxpr = jex.ClosedJaxpr
Var = Any  # jex.Var or jex.Literal
Eqn = Any

# Equations that call another jaxpr; opened, a checkpoint computes again where it stands.
_CALLS = ("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat2")
_CALLS += ("custom_jvp_call", "custom_vjp_call")


def trace(fn: Callable[..., Any], *args: Any) -> tuple[ClosedJaxpr, Any]:
    """`fn` on abstract or concrete arguments as a jaxpr with its calls opened, and its out tree."""
    closed, out = jax.make_jaxpr(fn, return_shape=True)(*args)
    return opened(closed), out


def evaluate(eqns: Sequence[Eqn], env: dict[Var, Any], outputs: Sequence[Var]) -> list[Any]:
    """Runs equations on top of `env`, which maps variables to values."""

    def read(v: Var) -> Any:
        return v.val if isinstance(v, jex.Literal) else env[v]

    for eqn in eqns:
        params = eqn.primitive.get_bind_params(eqn.params)
        with eqn.ctx.manager:
            out = eqn.primitive.bind(*map(read, eqn.invars), **params)
        env.update(zip(eqn.outvars, out if eqn.primitive.multiple_results else [out], strict=True))
    return [read(v) for v in outputs]


def initial_values(closed: ClosedJaxpr, args: Sequence[Any]) -> dict[Var, Any]:
    """The environment in which a jaxpr's equations start."""
    jaxpr = closed.jaxpr
    known = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    return known | dict(zip(jaxpr.invars, args, strict=True))


def call(closed: ClosedJaxpr, args: Sequence[Any]) -> list[Any]:
    """Runs a whole jaxpr."""
    return evaluate(closed.jaxpr.eqns, initial_values(closed, args), closed.jaxpr.outvars)


def needed(eqns: Sequence[Eqn], targets: Collection[Var], given: Collection[Var] = ()) -> list[Eqn]:
    """The equations that `targets` need, in order, when the values of `given` are known."""
    wanted = variables(targets) - set(given)
    kept = []
    for eqn in reversed(eqns):
        if any(v in wanted for v in eqn.outvars):
            kept.append(eqn)
            wanted |= variables(eqn.invars) - set(given)
    return kept[::-1]


def is_variable(v: Var) -> bool:
    """Whether a jaxpr's atom is a variable, not a literal."""
    return not isinstance(v, jex.Literal)


def variables(atoms: Iterable[Var]) -> set[Var]:
    """The variables among some atoms; literals cannot be put into sets."""
    return {v for v in atoms if is_variable(v)}


def literal_value(v: Var) -> Any:
    """The value of a literal."""
    return v.val


def sources(closed: ClosedJaxpr, marks: Sequence[Hashable]) -> dict[Var, frozenset[Hashable]]:
    """For each variable, the marks of the inputs that it depends on (`marks`: one an input)."""
    jaxpr = closed.jaxpr
    found: dict[Var, frozenset[Hashable]] = dict.fromkeys(jaxpr.constvars, frozenset())
    found |= {v: frozenset([m]) for v, m in zip(jaxpr.invars, marks, strict=True)}
    for eqn in jaxpr.eqns:
        union = frozenset().union(*(found[v] for v in eqn.invars if is_variable(v)))
        found |= dict.fromkeys(eqn.outvars, union)
    return found


def input_specs(closed: ClosedJaxpr) -> list[jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a jaxpr's inputs."""
    return [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in closed.jaxpr.invars]


def scope(eqn: Eqn) -> str:
    """The named scopes that an equation was traced in, such as a layer's name."""
    return str(eqn.source_info.name_stack)


def axes(eqn: Eqn) -> tuple[Any, ...]:
    """The mesh axes over which an equation communicates; none for most."""
    found = eqn.params.get("axes", eqn.params.get("axis_name", ()))
    return tuple(found) if isinstance(found, tuple | list) else (found,)


class Loop(NamedTuple):
    """What a `lax.scan` equation runs: inputs are constants, carry, slices; outputs carry, slices.

    Attributes:
      body: of one iteration, its calls opened.
      num_consts: how many inputs are constants.
      num_carry: how many inputs, and how many outputs, are the carry.
      length: iterations.
      reverse: whether the last slice comes first.
      unroll: iterations a trip.
    """

    body: ClosedJaxpr
    num_consts: int
    num_carry: int
    length: int
    reverse: bool
    unroll: int


def loop(eqn: Eqn) -> Loop:
    """The parts of a `lax.scan` equation: JAX 0.12 keeps a tree of them, older ones counts."""
    params = eqn.params
    if "ft_in" in params:
        consts, carry, _ = params["ft_in"].unpack()
        counts = len(consts), len(carry)
    else:
        counts = params["num_consts"], params["num_carry"]
    settings = params["length"], params["reverse"], params["unroll"]
    return Loop(opened(params["jaxpr"]), *counts, *settings)


def loops(closed: ClosedJaxpr) -> list[Loop]:
    """The scans among a jaxpr's equations."""
    return [loop(eqn) for eqn in closed.jaxpr.eqns if eqn.primitive.name == "scan"]


def signature(eqns: Sequence[Eqn], targets: Sequence[Var], inputs: Sequence[Var]) -> Hashable:
    """Equal for equations that do the same with corresponding inputs.

    Args:
      eqns: in order.
      targets: what they compute.
      inputs: variables to be matched by their place; all others they read must be the same.
    """
    number: dict[Var, Hashable] = {v: ("in", i) for i, v in enumerate(inputs)}

    def atom(v: Var) -> Hashable:
        if isinstance(v, jex.Literal):
            return ("literal", repr(v.val), str(v.aval))
        return number.get(v, v)

    lines = []
    for n, eqn in enumerate(eqns):
        reads = tuple(map(atom, eqn.invars))
        number |= {v: (n, i) for i, v in enumerate(eqn.outvars)}
        shapes = tuple(str(v.aval) for v in eqn.outvars)
        lines.append((eqn.primitive.name, reads, shapes, str(eqn.params)))
    return tuple(lines), tuple(map(atom, targets))


class Merged(NamedTuple):
    """An equation of which the inputs may be those of an earlier, equal one.

    Attributes:
      primitive: what it does.
      params: with what.
      invars: its inputs.
      outvars: its outputs.
    """

    primitive: Any
    params: Mapping[str, Any]
    invars: list[Var]
    outvars: list[Var]


def merged(closed: ClosedJaxpr) -> tuple[list[Merged], list[Var]]:
    """The equations and outputs of a jaxpr with what is computed twice computed once, as by XLA."""
    same: dict[Var, Var] = {}
    known: dict[Hashable, list[Var]] = {}
    found = []
    atom = lambda v: same.get(v, v) if is_variable(v) else v
    name = lambda v: v if is_variable(v) else ("literal", repr(v.val), str(v.aval))
    for eqn in closed.jaxpr.eqns:
        reads = [atom(v) for v in eqn.invars]
        key = eqn.primitive.name, tuple(map(name, reads)), str(eqn.params)
        if key in known and not eqn.effects:
            same |= dict(zip(eqn.outvars, known[key], strict=True))
            continue
        known[key] = list(eqn.outvars)
        found.append(Merged(eqn.primitive, eqn.params, reads, list(eqn.outvars)))
    return found, [atom(v) for v in closed.jaxpr.outvars]


def restrict(
    closed: ClosedJaxpr, outputs: Sequence[int], inputs: Sequence[int]
) -> Callable[..., Any]:
    """`some inputs -> some outputs` of a jaxpr, running only the equations these need.

    Args:
      closed: the jaxpr.
      outputs: indices of the outputs that are wanted.
      inputs: indices of the inputs that they depend on, at least.
    """
    jaxpr = closed.jaxpr
    wanted = [jaxpr.outvars[i] for i in outputs]
    eqns = needed(jaxpr.eqns, wanted)
    given = [jaxpr.invars[i] for i in inputs]

    def run(args: Sequence[Any]) -> list[Any]:
        consts = dict(zip(jaxpr.constvars, closed.consts, strict=True))
        return evaluate(eqns, consts | dict(zip(given, args, strict=True)), wanted)

    return run


def opened(closed: ClosedJaxpr) -> ClosedJaxpr:
    """The same jaxpr with its calls opened, so that dependencies show through them."""

    def run(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
        env: dict[Var, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
        env |= dict(zip(jaxpr.invars, args, strict=True))
        for eqn in jaxpr.eqns:
            inner = _called(eqn.primitive.name, eqn.params)
            if inner is None:
                evaluate([eqn], env, [])
            else:
                inputs = evaluate([], env, eqn.invars)
                with eqn.ctx.manager, jax.named_scope(scope(eqn)):
                    found = run(*inner, inputs)
                env.update(zip(eqn.outvars, found, strict=True))
        return evaluate([], env, jaxpr.outvars)

    if not any(_called(e.primitive.name, e.params) for e in closed.jaxpr.eqns):
        return closed
    make = lambda *args: run(closed.jaxpr, closed.consts, args)
    return jax.make_jaxpr(make)(*input_specs(closed))


def _called(name: str, params: Mapping[str, Any]) -> tuple[Any, Sequence[Any]] | None:
    """The jaxpr that an equation calls, and its constants."""
    inner = params.get("jaxpr", params.get("call_jaxpr")) if name in _CALLS else None
    if isinstance(inner, jex.ClosedJaxpr):
        return inner.jaxpr, inner.consts
    return inner and (inner, ())
