"""Runs a function of whole logical trees on placed ones, rank by rank, with nothing gathered.

An optimizer is such a function: it must see every layer's true leaves, so that norms, factored
moments and masks by name mean what they mean without a pipeline, while each rank holds its own
layers only. The function is traced once on the logical trees. Equations that need one rank's leaves
run on that rank; equations of no rank's leaves (step counts, learning rates) run on all; and where
an equation mixes values of several ranks (the sum of a global norm), these must be small: they are
exchanged, and the equation runs on all. So sums keep the order that they have without a pipeline.
Where several devices share a rank's leaves, `pieces` does the rest.
"""

import dataclasses
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from jaxpipe import jaxpr as jaxprs
from jaxpipe.errors import OptimizerError
from jaxpipe.executor.run import when, when_and_after
from jaxpipe.mesh import PIPE
from jaxpipe.pieces import Piece, evaluate, own_piece, whole
from jaxpipe.storage import Cut, Home, Layout, Placed, axes, read, write

PyTree = Any
Var = Any
_T = TypeVar("_T")
LARGEST_EXCHANGE = 4096  # elements of a value that may cross ranks


@dataclasses.dataclass
class Held:
    """One placed tree inside `shard_map`.

    Attributes:
      rows: this device's row of each buffer.
      shared: the leaves of no rank.
    """

    rows: dict[str, jax.Array]
    shared: list[jax.Array]


def held(placed: Placed) -> Held:
    """A device's part of placed arrays, inside `shard_map`: without the dims that are cut."""
    layout = placed.layout
    rows = {name: x.reshape(layout.row_shape(name)) for name, x in placed.buffers.items()}
    return Held(rows, list(placed.shared))


def join(held: Held, layout: Layout) -> Placed:
    """The way back."""
    ones = {name: (1,) * len(axes(layout, name)) for name in layout.buffers}
    buffers = {name: held.rows[name].reshape(*ones[name], *layout.row_shape(name)) for name in ones}
    return Placed(buffers, tuple(held.shared), layout)


class _Part(NamedTuple):
    """Some results of one rank.

    Attributes:
      rank: whose leaves are read.
      eqns: the equations that they need beyond what every rank knows.
      targets: the results.
      places: where they go, (output, leaf); empty for values that travel.
      reads: the rank's own leaves that they need, variable and (input, leaf).
    """

    rank: int
    eqns: list[Any]
    targets: list[Var]
    places: list[tuple[int, int]]
    reads: list[tuple[Var, tuple[int, int]]]


class Spread:
    """A function of logical trees, spread over ranks.

    Args:
      fn: `(*trees) -> tuple of trees`, plain JAX.
      inputs: layouts of its arguments.
      outputs: layouts of its results.
      what: what to call `fn` in messages.

    Raises:
      OptimizerError: when `fn` mixes whole arrays of layers that live on different ranks.
    """

    def __init__(
        self,
        fn: Callable[..., Sequence[PyTree]],
        inputs: Sequence[Layout],
        outputs: Sequence[Layout],
        what: str,
    ):
        self._inputs, self._outputs, self._what = tuple(inputs), tuple(outputs), what
        trees = [
            layout.treedef.unflatten(
                [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in layout.leaves]
            )
            for layout in inputs
        ]
        self._closed, _ = jaxprs.trace(fn, *trees)
        self._in_leaves = [(k, i) for k, x in enumerate(inputs) for i in range(len(x.leaves))]
        self._out_leaves = [(k, i) for k, x in enumerate(outputs) for i in range(len(x.leaves))]
        self._analyse()
        self._meets = any(
            not layout.held_cut(i).is_whole
            for layout in (*inputs, *outputs)
            for i in range(len(layout.leaves))
        )

    def _rank_in(self, place: tuple[int, int]) -> int | None:
        return self._inputs[place[0]].leaves[place[1]].rank

    def _rank_out(self, place: tuple[int, int]) -> int | None:
        return self._outputs[place[0]].leaves[place[1]].rank

    def _analyse(self) -> None:
        """Gives each variable a rank (None: known to all) and a round, the exchanges before it."""
        jaxpr = self._closed.jaxpr
        rank: dict[Var, int | None] = dict.fromkeys(jaxpr.constvars)
        rank |= {v: self._rank_in(p) for v, p in zip(jaxpr.invars, self._in_leaves, strict=True)}
        round_of = dict.fromkeys(rank, 0)
        self._exchanged: dict[Var, int] = {}  # variable -> the round after which it travels

        def use(variables: Sequence[Var], target: int | None, what: str) -> int:
            """The round in which `target` (None: every rank) knows them all."""
            rounds = [0]
            for v in variables:
                rounds.append(round_of[v])
                if rank[v] not in (None, target):
                    self._check_small(v, what)
                    self._exchanged[v] = round_of[v]
                    rounds.append(round_of[v] + 1)
            return max(rounds)

        mixed: set[Var] = set()  # of several ranks
        for eqn in jaxpr.eqns:
            reads = [v for v in eqn.invars if jaxprs.is_variable(v)]
            ranks = {rank[v] for v in reads} - {None}
            # Values go to where the largest is, or to all; once known to all, scalars stay so.
            if len(ranks) > 1 or (any(v in mixed for v in reads) and all(map(_is_scalar, reads))):
                most = max(math.prod(v.aval.shape) for v in reads)
                largest = {rank[v] for v in reads if math.prod(v.aval.shape) == most}
                ranks = largest - {None} if most > 1 and len(largest - {None}) == 1 else set()
                mixed |= set(eqn.outvars) if not ranks else set()
            target = next(iter(ranks), None)
            at = use(reads, target, f"the operation `{eqn.primitive.name}`")
            for v in eqn.outvars:
                rank[v], round_of[v] = target, at
        for v, place in zip(jaxpr.outvars, self._out_leaves, strict=True):
            if jaxprs.is_variable(v):
                use([v], self._rank_out(place), "a result")
        self._rank, self._round = rank, round_of
        self._num_rounds = 1 + max(self._exchanged.values(), default=-1)

    def _check_small(self, v: Var, what: str) -> None:
        if not _is_small(v):
            raise OptimizerError(
                f"{self._what} mixes whole arrays of layers on different ranks: {what} reads a"
                f" {v.aval.dtype}{list(v.aval.shape)} of one rank together with values of another."
                " Norms and other small values may cross ranks, arrays may not. Use an optimizer"
                " that treats leaves one by one."
            )

    def __call__(
        self, inputs: Sequence[Held], into: Sequence[Held]
    ) -> tuple[list[Held], jax.Array]:
        """Runs it inside `shard_map`.

        Args:
          inputs: the arguments.
          into: rows that the results are written over; an argument's rows may be given again here,
            they are read first.

        Returns:
          The results; and a uint32 that is 0 once all is done, as of `when_and_after`.
        """
        jaxpr, after = self._closed.jaxpr, jnp.uint32(0)
        known = dict(zip(jaxpr.constvars, self._closed.consts, strict=True))
        for v, (k, i) in zip(jaxpr.invars, self._in_leaves, strict=True):
            if self._rank_in((k, i)) is None:
                free = [j for j, leaf in enumerate(self._inputs[k].leaves) if leaf.rank is None]
                known[v] = inputs[k].shared[free.index(i)]
        for at in range(self._num_rounds):
            self._run_shared(known, at)
            after = self._exchange(known, at, inputs, after)
        self._run_shared(known, self._num_rounds)
        rows, after = self._run_ranks(known, inputs, [held.rows for held in into], after)
        shared = [
            jaxprs.evaluate([], known, [v])[0]
            for v, place in zip(jaxpr.outvars, self._out_leaves, strict=True)
            if self._rank_out(place) is None
        ]
        counts = [sum(leaf.rank is None for leaf in x.leaves) for x in self._outputs]
        free = iter(shared)
        results = [
            Held(r, [next(free) for _ in range(n)]) for r, n in zip(rows, counts, strict=True)
        ]
        return results, after

    def _guarded(
        self, here: jax.Array, body: Callable[[jax.Array, _T], _T], carry: _T, after: jax.Array
    ) -> tuple[_T, jax.Array]:
        """`when`; where devices of a rank meet within guards, these come one after the other."""
        if not self._meets:
            return when(here, body, carry), after
        return when_and_after(here.astype(jnp.uint32) + after, body, carry)

    def _run_shared(self, known: dict[Var, Any], at: int) -> None:
        eqns = [
            eqn
            for eqn in self._closed.jaxpr.eqns
            if self._rank[eqn.outvars[0]] is None and self._round[eqn.outvars[0]] == at
        ]
        jaxprs.evaluate(eqns, known, [])

    def _exchange(
        self, known: dict[Var, Any], at: int, inputs: Sequence[Held], after: jax.Array
    ) -> jax.Array:
        """Every rank learns the values that travel after this round."""
        travelling = [v for v, r in self._exchanged.items() if r == at]
        values = [jnp.zeros(v.aval.shape, v.aval.dtype) for v in travelling]
        for rank in range(self._inputs[0].num_ranks):
            mine = [i for i, v in enumerate(travelling) if self._rank[v] == rank]
            if not mine:
                continue
            part = self._part(rank, [travelling[i] for i in mine], [], known)

            def body(zero: Any, carry: list[Any], part: Any = part, mine: Any = mine) -> list[Any]:
                out = list(carry)
                values = self._evaluate(part, known, inputs, zero)
                for i, value in zip(mine, values, strict=True):
                    out[i] = whole(value)
                return out

            here = lax.axis_index(PIPE) == rank
            values, after = self._guarded(here, body, values, after)
        # All but the owner hold zeros: the sum is the owner's value to the bit.
        known |= dict(zip(travelling, lax.psum(values, PIPE), strict=True))
        return lax.psum(after, PIPE) if self._meets else after

    def _run_ranks(
        self,
        known: dict[Var, Any],
        inputs: Sequence[Held],
        into: list[dict[str, jax.Array]],
        after: jax.Array,
    ) -> tuple[list[dict[str, jax.Array]], jax.Array]:
        """Writes every result on its rank, layer by layer; alike layers share one guard."""
        alias = [next((k for k, r in enumerate(into) if r is x.rows), None) for x in inputs]
        for part, ranks in self._parts(known):
            homes = [self._outputs[k].homes[i][part.rank] for k, i in part.places]
            touched = {(k, home.buffer) for (k, _), home in zip(part.places, homes, strict=True)}

            def body(
                zero: Any, mine: Any, part: Any = part, homes: Any = homes, rows: Any = into
            ) -> Any:
                now = [r | {b: mine[k, b] for j, b in mine if j == k} for k, r in enumerate(rows)]
                current = [
                    x if k is None else Held(now[k], x.shared)
                    for x, k in zip(inputs, alias, strict=True)
                ]
                values = self._evaluate(part, known, current, zero)
                for value, (k, i), home in zip(values, part.places, homes, strict=True):
                    cut = self._outputs[k].held_cut(i)
                    write(now[k], home, whole(value) if cut.is_whole else own_piece(value, cut))
                return {(k, buffer): now[k][buffer] for k, buffer in mine}

            here = jnp.isin(lax.axis_index(PIPE), jnp.array(ranks))
            mine = {(k, b): into[k][b] for k, b in sorted(touched)}
            new, after = self._guarded(here, body, mine, after)
            into = [r | {b: new[k, b] for j, b in new if j == k} for k, r in enumerate(into)]
        return into, after

    def _parts(self, known: dict[Var, Any]) -> list[tuple[_Part, list[int]]]:
        """What to evaluate for each layer, and on which ranks: the same code may serve several."""
        targets: dict[tuple[int, str | None], list[tuple[Var, tuple[int, int]]]] = {}
        for v, place in zip(self._closed.jaxpr.outvars, self._out_leaves, strict=True):
            leaf = self._outputs[place[0]].leaves[place[1]]
            if leaf.rank is not None:
                targets.setdefault((leaf.rank, leaf.layer), []).append((v, place))
        parts: dict[Hashable, tuple[_Part, list[int]]] = {}
        for (rank, _), pairs in targets.items():
            part = self._part(rank, [v for v, _ in pairs], [p for _, p in pairs], known)
            outs = [(k, *_home(self._outputs[k], i, rank)) for k, i in part.places]
            ins = [(k, *_home(self._inputs[k], i, rank)) for _, (k, i) in part.reads]
            shape = jaxprs.signature(part.eqns, part.targets, [v for v, _ in part.reads])
            key = (shape, tuple(outs), tuple(ins))
            parts.setdefault(key, (part, []))[1].append(rank)
        return list(parts.values())

    def _part(
        self, rank: int, targets: list[Var], places: list[tuple[int, int]], known: dict[Var, Any]
    ) -> _Part:
        jaxpr = self._closed.jaxpr
        eqns = jaxprs.needed(jaxpr.eqns, targets, known.keys())
        used = jaxprs.variables([*(v for eqn in eqns for v in eqn.invars), *targets])
        reads = [
            (v, place)
            for v, place in zip(jaxpr.invars, self._in_leaves, strict=True)
            if v in used and self._rank_in(place) == rank
        ]
        return _Part(rank, eqns, targets, places, reads)

    def _evaluate(
        self, part: _Part, known: dict[Var, Any], inputs: Sequence[Held], zero: jax.Array
    ) -> list[Any]:
        """The part's targets from what all know and from this rank's own leaves."""
        layouts = self._inputs
        own = [
            read(inputs[k].rows, layouts[k].homes[i][part.rank], layouts[k].shape_of(i))
            for _, (k, i) in part.reads
        ]
        # Ties them to the guard's trip count, or XLA would run what reads them on every rank.
        own, _ = lax.optimization_barrier((own, zero))
        env = dict(known)
        for (v, (k, i)), x in zip(part.reads, own, strict=True):
            cut = layouts[k].held_cut(i)
            env[v] = x if cut.is_whole else Piece(x.reshape(-1), cut)
        return evaluate(part.eqns, env, part.targets)


def _home(layout: Layout, i: int, rank: int) -> tuple[Home, Cut]:
    return layout.homes[i][rank], layout.held_cut(i)


def _is_scalar(v: Var) -> bool:
    return math.prod(v.aval.shape) == 1


def _is_small(v: Var) -> bool:
    return math.prod(v.aval.shape) <= LARGEST_EXCHANGE
