"""The only loop that runs a schedule: one loop over ticks, which knows integers and functions.

A microbatch's way: its input waits in a mail slot; an action reads it, leaves what B will need in
a row of the stash and puts its result into the rank's outbox for its flow, ahead or back; a tick's
meeting carries outboxes over the links that it uses; what arrives is put into the next mail slot.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxpipe.executor.packing import Buffers, Packing
from jaxpipe.executor.program import NOWHERE, Program
from jaxpipe.mesh import PIPE
from jaxpipe.schedules.meetings import Permute

Carry = dict[str, Any]
AHEAD, BACK = "ahead", "back"  # outboxes: activations travel ahead, gradients back
BRANCH_SCOPE = "branch{}"  # names a branch's loop in the compiled program
_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Cells:
    """One tick's integers for this rank, looked up only where they are used.

    Attributes:
      columns: {name of a column: uint32[ticks]}; signed indices would be wrapped at each use.
      tick: uint32 scalar.
    """

    columns: Mapping[str, jax.Array]
    tick: jax.Array

    def __getitem__(self, name: str) -> jax.Array:
        """The uint32 scalar of a column."""
        return lax.dynamic_index_in_dim(self.columns[name], self.tick, keepdims=False)


@dataclasses.dataclass(frozen=True)
class Action:
    """What a branch of the program does.

    Attributes:
      run: `(cells, carry) -> the parts of the carry that it changes`.
      writes: the names of the parts that it may change; they are updated in place.
      sends: the outbox for its result, if any: AHEAD or BACK.
    """

    run: Callable[[Cells, Carry], Carry]
    writes: tuple[str, ...]
    sends: str | None = None


def when(trips: jax.Array, fn: Callable[[jax.Array, _T], _T], carry: _T) -> _T:
    """`fn(zero, carry)` where this rank's `trips` is 1 (or True), else `carry`; in place.

    `lax.cond` would return new buffers and copy the carry. XLA moves out of a loop what does not
    change in it, and then idle ranks would run that too: `zero` counts the trips that are left,
    always 0 though the compiler cannot know, and what is indexed with `cell + zero` stays inside.
    """
    return when_and_after(trips, fn, carry)[0]


def when_and_after(
    trips: jax.Array, fn: Callable[[jax.Array, _T], _T], carry: _T
) -> tuple[_T, jax.Array]:
    """As `when`; and a uint32 that is 0 once it is done, to be added to what is to come after.

    XLA's CPU runtime starts what no data holds back, so that a collective behind a guard may
    overtake those within it, on one device and not on another, and both wait forever.
    """

    def body(state: tuple[jax.Array, _T]) -> tuple[jax.Array, _T]:
        left = state[0] - 1
        return left, fn(left, state[1])

    start = trips.astype(jnp.uint32), carry
    left, carry = lax.while_loop(lambda state: state[0] > 0, body, start)
    return carry, left


def run_program(
    program: Program,
    actions: Sequence[Action],
    payload: Packing,
    carry: Carry,
    fill: float | None,
    *,
    in_turn: bool = False,
) -> Carry:
    """Runs every tick. Inside `shard_map`, manual over `pipe`.

    Args:
      program: the integers.
      actions: one for each of the program's branches.
      payload: how values are packed to travel.
      carry: what the actions read and write; outboxes and `mail` are added here.
      fill: what mail and outboxes hold at the start. Nothing may ever read it: tests use NaN.
      in_turn: whether ranks meet only when a tick's actions are done, as they must on CPU where
        actions meet too (over `tensor` or `data`).
    """
    # One slot past the end takes what nobody wants.
    carry = carry | dict(
        ahead=payload.empty(None, fill),
        back=payload.empty(None, fill),
        mail=payload.empty(program.num_mail + 1, fill),
        arrived=[payload.empty(None, fill) for _ in range(program.latency * program.num_permutes)],
    )

    columns = _columns(program)

    def tick(number: jax.Array, carry: Carry) -> Carry:
        cells = Cells(columns, number)
        if not program.latency:
            carry, after = _work(program, actions, cells, carry)
            arrived = _meet(program, cells, carry, after if in_turn else None)
            return _deliver(program, arrived, cells, carry)
        # What met while the last tick worked goes into the mail before any action reads there: XLA
        # would copy all of the mail to let the two overlap.
        carry = _deliver(program, carry["arrived"], cells, carry)
        new, after = _work(program, actions, cells, carry)
        arrived = _meet(program, cells, carry, after if in_turn else None)
        return new | dict(arrived=arrived)

    return lax.fori_loop(np.uint32(0), np.uint32(program.num_ticks), tick, carry)


def _columns(program: Program) -> dict[str, jax.Array]:
    """This rank's integers by tick, all in range: arrivals for nobody go to the spare mail slot.

    Each branch has a column of its own, of ones where it runs.
    """
    rank, out = lax.axis_index(PIPE), {}
    for name, column in program.table.items():
        if name == "branch":
            continue
        spare = program.num_mail if name in ("keep", *program.arrivals) else 0
        column = np.where(column == NOWHERE, spare, column)
        if program.latency and name in program.arrivals:  # one tick after its meeting
            column = np.concatenate([np.full_like(column[:1], spare), column[:-1]])
        out[name] = jnp.asarray(column.astype(np.uint32))[:, rank]
    for number in range(1, len(program.branches) + 1):
        runs = program.table["branch"] == number
        out[_trips(number)] = jnp.asarray(runs.astype(np.uint32))[:, rank]
    return out | dict(pattern=jnp.asarray(program.pattern.astype(np.uint32)))


def _trips(number: int) -> str:
    return f"trips {number}"


def _work(
    program: Program, actions: Sequence[Action], cells: Cells, carry: Carry
) -> tuple[Carry, jax.Array]:
    """This tick's action, if any, and a 0 for what is to come after it."""
    after = jnp.uint32(0)
    for number, action in enumerate(actions, 1):
        here = program.table["branch"] == number
        keeps = bool((program.table["keep"][here] != NOWHERE).any())

        def body(
            zero: jax.Array,
            mine: Carry,
            action: Action = action,
            keeps: bool = keeps,
            all: Carry = carry,
        ) -> Carry:
            now = Cells(cells.columns, cells.tick + zero)
            new = mine | action.run(now, all | mine)
            if keeps and action.sends is not None:  # the next stage may be the rank's own
                new["mail"] = _put(new[action.sends], now["keep"], new["mail"])
            return new

        names = (*action.writes, *(("mail",) if keeps else ()))
        mine = {name: carry[name] for name in names}
        with jax.named_scope(BRANCH_SCOPE.format(number)):
            done, left = when_and_after(cells[_trips(number)], body, mine)
        carry, after = carry | done, after + left
    return carry, after


def _deliver(program: Program, arrivals: Sequence[Buffers], cells: Cells, carry: Carry) -> Carry:
    """What a meeting brought, into its mail slots."""
    mail = carry["mail"]
    for column, arrived in zip(program.arrivals, arrivals, strict=True):
        mail = _put(arrived, cells[column], mail)
    return carry | dict(mail=mail)


def _put(payload: Buffers, slot: jax.Array, mail: Buffers) -> Buffers:
    pairs = zip(mail, payload, strict=True)
    return [lax.dynamic_update_index_in_dim(box, x, slot, 0) for box, x in pairs]


def _meet(program: Program, cells: Cells, carry: Carry, after: jax.Array | None) -> list[Buffers]:
    """Takes outboxes over this tick's links: what arrives, by permute; `after` holds it back."""
    if not program.num_permutes:
        return []
    # The pattern is the same on every rank, so all take the same branch and meet.
    meetings = [_meeting(permutes, program.num_permutes) for permutes in program.patterns]
    if len(meetings) > 1 or after is not None:
        meetings = meetings * 2 if len(meetings) == 1 else meetings  # or there is no choice to wait
        pattern = cells["pattern"] if after is None else cells["pattern"] + after
        return lax.switch(pattern.astype(jnp.int32), meetings, carry[AHEAD], carry[BACK])
    # Nothing encloses these permutes, so they can run beside the tick's work. That writes into the
    # outboxes, so copies travel; and behind a barrier, as XLA would move a permute whose result is
    # for the next tick into the next tick, and wait for it there.
    ahead, back = ([_copy(x, cells) for x in carry[name]] for name in (AHEAD, BACK))
    return jax.tree.map(lax.optimization_barrier, meetings[0](ahead, back))


def _copy(x: jax.Array, cells: Cells) -> jax.Array:
    """A copy that XLA does not see to be one: there is no such tick."""
    return lax.select(cells.tick == np.uint32(2**32 - 1), jnp.zeros_like(x), x)


def _meeting(
    permutes: Sequence[Permute], num_permutes: int
) -> Callable[[Buffers, Buffers], list[Buffers]]:
    def meet(ahead: Buffers, back: Buffers) -> list[Buffers]:
        arrived = [
            [lax.ppermute(x, PIPE, permute.links) for x in (ahead if permute.forwards else back)]
            for permute in permutes
        ]
        return arrived + [ahead] * (num_permutes - len(permutes))

    return meet
