"""A jaxpr cut in two: what some of its outputs need, and the rest, with what passes in between.

The backward of a stage is one jaxpr. The equations that the input's gradient needs are the first
half, those that only weight gradients need the second; nothing is computed in both but what depends
on weights alone. Where a `lax.scan` computes both sorts it is cut into two scans. Sea AI Lab,
"Zero Bubble Pipeline Parallelism", https://arxiv.org/abs/2401.10241, has the idea of two halves.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax
from jax import lax

from jaxpipe import jaxpr as jaxprs
from jaxpipe.errors import LayerError

Var = Any
Eqn = Any

# What these compute counts as work; it stays in its half however much would have to be kept.
_WORK = ("dot_general", "conv_general_dilated", "scan", "while", "cond", "sort", "custom_call")
# These compute all their outputs at once.
_OPAQUE = ("while", "cond")


class _Cut(NamedTuple):
    """Equations of both halves, in order, and the variables that pass from one to the other."""

    first: list[Eqn]
    second: list[Eqn]
    crossing: list[Var]


@dataclasses.dataclass(frozen=True)
class Halves:
    """A jaxpr in two halves.

    Attributes:
      crossing: shapes and dtypes of what the first half leaves for the second.
    """

    crossing: tuple[Any, ...]
    _closed: jaxprs.ClosedJaxpr
    _cut: _Cut
    _outputs: tuple[list[Var], list[Var]]

    def first(self, args: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """From all inputs to the first outputs, and what the second half needs."""
        env = jaxprs.initial_values(self._closed, args)
        outputs = [*self._outputs[0], *self._cut.crossing]
        found = jaxprs.evaluate(self._cut.first, env, outputs)
        count = len(self._outputs[0])
        return found[:count], found[count:]

    def second(self, args: Sequence[Any], crossing: Sequence[Any]) -> list[Any]:
        """The other outputs. `args` may end before the inputs that are gone."""
        missing = len(self._closed.jaxpr.invars) - len(args)
        env = jaxprs.initial_values(self._closed, [*args, *[None] * missing])
        env |= dict(zip(self._cut.crossing, crossing, strict=True))
        return jaxprs.evaluate(self._cut.second, env, self._outputs[1])


def halve(closed: jaxprs.ClosedJaxpr, first: Collection[int], marks: Sequence[str]) -> Halves:
    """Cuts a jaxpr in two.

    Args:
      closed: the jaxpr, its calls opened.
      first: indices of the outputs of the first half.
      marks: for each input, what the second half can do with it: "free" to read it again, and to
        compute again what depends on such inputs only; "kept" to read it again; "gone" if it must
        be passed on.

    Raises:
      LayerError: one operation computes what both halves are for, so that there is no cut.
    """
    closed = _split_scans(closed, first)
    jaxpr = closed.jaxpr
    targets = [v for i, v in enumerate(jaxpr.outvars) if i in first]
    others = [v for i, v in enumerate(jaxpr.outvars) if i not in first]
    depends = jaxprs.sources(closed, marks)
    gone = {v for v, mark in zip(jaxpr.invars, marks, strict=True) if mark == "gone"}
    cut = _cut(jaxpr.eqns, targets, others, gone, lambda v: depends[v] <= {"free"})
    specs = tuple(jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in cut.crossing)
    return Halves(specs, closed, cut, (targets, others))


def _cut(
    eqns: Sequence[Eqn],
    targets: Sequence[Var],
    others: Sequence[Var],
    gone: Collection[Var],
    is_free: Callable[[Var], bool] = lambda v: False,
    late: Collection[Var] = (),
) -> _Cut:
    """Cuts equations so that the first half computes `targets` and the second `others`.

    Args:
      eqns: all equations, in order.
      targets: what the first half computes.
      others: what the second half computes.
      gone: inputs that only the first half can read.
      is_free: whether a variable is computed again where the second half needs it.
      late: inputs that only the second half can read.
    """
    first = {id(eqn) for eqn in jaxprs.needed(eqns, targets)}
    made = {v for e in eqns if id(e) in first for v in e.outvars if not is_free(v)}
    second = jaxprs.needed(eqns, others, made)
    _check_opaque(eqns, first, targets, second, others)
    if targets:
        moved = _cheap_ones(second, others, made | set(gone), late)
        first |= moved
        made |= {v for e in second if id(e) in moved for v in e.outvars}
        second = [e for e in second if id(e) not in moved]
    reads = [*(v for e in second for v in e.invars), *others]
    passing = made | set(gone)
    crossing = list(dict.fromkeys(v for v in reads if jaxprs.is_variable(v) and v in passing))
    return _Cut([e for e in eqns if id(e) in first], second, crossing)


def _cheap_ones(
    second: Sequence[Eqn], others: Sequence[Var], passing: set[Var], late: Collection[Var]
) -> set[int]:
    """Equations of the second half that the first had better run, because less passes then.

    A sum of what is read by nothing else, say: its result is smaller. Each move makes what passes
    smaller, or leaves it as it is and others possible.
    """
    readers: dict[Var, set[int]] = {}
    for eqn in second:
        for v in jaxprs.variables(eqn.invars):
            readers.setdefault(v, set()).add(id(eqn))
    for v in jaxprs.variables(others):
        readers.setdefault(v, set()).add(0)  # the caller reads it
    written = {v for eqn in second for v in eqn.outvars} | set(late)
    passing, moved, changed = set(passing), set(), True
    while changed:
        changed = False
        for eqn in second:
            if id(eqn) in moved or eqn.primitive.name in _WORK:
                continue
            reads = jaxprs.variables(eqn.invars)
            if reads & written - passing:
                continue  # reads what only the second half knows
            freed = sum(_bytes(v) for v in reads & passing if readers[v] <= {id(eqn)})
            if freed and freed >= sum(_bytes(v) for v in eqn.outvars if readers.get(v)):
                moved.add(id(eqn))
                passing |= set(eqn.outvars)
                for v in reads:
                    readers[v].discard(id(eqn))
                changed = True
    return moved


def _bytes(v: Var) -> int:
    return math.prod(v.aval.shape) * v.aval.dtype.itemsize


def _check_opaque(
    eqns: Sequence[Eqn],
    first: set[int],
    targets: Sequence[Var],
    second: Sequence[Eqn],
    others: Sequence[Var],
) -> None:
    """Refuses operations that would do the second half's work within the first."""
    reads = [v for e in eqns if id(e) in first for v in e.invars]
    needed_first = jaxprs.variables([*reads, *targets])
    needed_second = jaxprs.variables([*(v for e in second for v in e.invars), *others])
    for eqn in eqns:
        both = id(eqn) in first and set(eqn.outvars) & (needed_second - needed_first)
        if both and eqn.primitive.name in _OPAQUE:
            # transpose(jvp(layer)) names the layer whose backward this is.
            where = re.sub(r"\w+\(|\)", "", jaxprs.scope(eqn)) or "a layer without a name"
            raise LayerError(
                f"{where}: its backward computes the gradients of its input and of its weights in"
                f" one `{eqn.primitive.name}`, which cannot be cut into I and W. Use a schedule"
                " with full backwards, B, or move the weights out of the branches."
            )


# --- Scans ----------------------------------------------------------------------------------------


def _split_scans(closed: jaxprs.ClosedJaxpr, first: Collection[int]) -> jaxprs.ClosedJaxpr:
    """The same jaxpr; a scan of which the first outputs need only some results becomes two."""
    scans = _mixed_scans(closed, first)
    if not scans:
        return closed

    def run(*args: Any) -> list[Any]:
        env = jaxprs.initial_values(closed, args)
        for eqn in closed.jaxpr.eqns:
            if scan := scans.get(id(eqn)):
                inputs = jaxprs.evaluate([], env, eqn.invars)
                env.update(zip(eqn.outvars, scan.run(inputs), strict=True))
            else:
                jaxprs.evaluate([eqn], env, [])
        return jaxprs.evaluate([], env, closed.jaxpr.outvars)

    return jaxprs.trace(run, *jaxprs.input_specs(closed))[0]


def _mixed_scans(closed: jaxprs.ClosedJaxpr, first: Collection[int]) -> dict[int, "_Scan"]:
    """The scans to cut, by the id of their equation."""
    jaxpr, found = closed.jaxpr, {}
    wanted = jaxprs.variables([jaxpr.outvars[i] for i in first])
    for eqn in reversed(jaxpr.eqns):
        live = {i for i, v in enumerate(eqn.outvars) if v in wanted}
        if not live:
            continue
        reads = eqn.invars
        if eqn.primitive.name == "scan":
            scan = _Scan(eqn, live)
            if not scan.is_whole:
                found[id(eqn)] = scan
                reads = [eqn.invars[i] for i in scan.live_inputs]
        wanted |= jaxprs.variables(reads)
    return found


class _Scan:
    """A `lax.scan` cut in two: the first computes the results that are `live`."""

    def __init__(self, eqn: Eqn, live: set[int]):
        self._loop = loop = jaxprs.loop(eqn)
        body = loop.body
        self._live, reads = self._closure(body, live)
        self.live_inputs = [i for i, v in enumerate(body.jaxpr.invars) if v in reads]
        self._body = body if self.is_whole else _split_scans(body, self._live)

    def _closure(self, body: jaxprs.ClosedJaxpr, live: set[int]) -> tuple[set[int], set[Var]]:
        """The outputs of the body that live ones need over all iterations, and what they read."""
        carries = body.jaxpr.invars[self._loop.num_consts :][: self._loop.num_carry]
        while True:
            targets = [body.jaxpr.outvars[i] for i in sorted(live)]
            reads = jaxprs.variables(targets)
            for eqn in jaxprs.needed(body.jaxpr.eqns, targets):
                reads |= jaxprs.variables(eqn.invars)
            reads |= {v for i, v in enumerate(carries) if i in live}
            more = {i for i, v in enumerate(carries) if v in reads} - live
            if not more:
                return live, reads
            live = live | more

    @property
    def is_whole(self) -> bool:
        """Whether all results are live, so that there is nothing to cut."""
        return len(self._live) == len(self._loop.body.jaxpr.outvars)

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """Both scans; the results in the order of the one scan."""
        jaxpr, count = self._body.jaxpr, self._loop.num_consts
        live = sorted(self._live)
        dead = [i for i in range(len(jaxpr.outvars)) if i not in self._live]
        carries = jaxpr.invars[count : count + self._loop.num_carry]
        alive = {v for i, v in enumerate(carries) if i in self._live}
        outs = lambda indices: [jaxpr.outvars[i] for i in indices]
        cut = _cut(jaxpr.eqns, outs(live), outs(dead), alive, late=set(carries) - alive)
        found, crossed = self._scan(cut.first, live, inputs, [], [], cut.crossing)
        rest, _ = self._scan(cut.second, dead, inputs, cut.crossing, crossed, [])
        both = dict(zip(live, found, strict=True)) | dict(zip(dead, rest, strict=True))
        return [both[i] for i in range(len(jaxpr.outvars))]

    def _scan(
        self,
        eqns: Sequence[Eqn],
        outs: Sequence[int],
        inputs: Sequence[Any],
        given: Sequence[Var],
        values: Sequence[Any],
        emitted: Sequence[Var],
    ) -> tuple[list[Any], list[Any]]:
        """A scan that gives the results `outs`, and stacks the variables `emitted`.

        `given` are variables whose values the other scan has stacked in `values`.
        """
        jaxpr, count, carry = self._body.jaxpr, self._loop.num_consts, self._loop.num_carry
        mine = [i for i in outs if i < carry]
        ys = [i for i in outs if i >= carry]
        consts, starts = inputs[:count], inputs[count : count + carry]
        xs = inputs[count + carry :]

        def body(state: Sequence[Any], slices: Any) -> Any:
            env = dict(zip(jaxpr.constvars, self._body.consts, strict=True))
            env |= dict(zip(jaxpr.invars[:count], consts, strict=True))
            env |= {jaxpr.invars[count + i]: v for i, v in zip(mine, state, strict=True)}
            env |= dict(zip(jaxpr.invars[count + carry :], slices[0], strict=True))
            env |= dict(zip(given, slices[1], strict=True))
            wanted = [*(jaxpr.outvars[i] for i in [*mine, *ys]), *emitted]
            found = jaxprs.evaluate(eqns, env, wanted)
            n, k = len(mine), len(mine) + len(ys)
            return found[:n], (found[n:k], found[k:])

        end, (stacked, crossed) = lax.scan(
            body, [starts[i] for i in mine], (list(xs), list(values)),
            length=self._loop.length, reverse=self._loop.reverse, unroll=self._loop.unroll,
        )  # fmt: skip
        return [*end, *stacked], list(crossed)
