"""The only loop that runs a schedule: one scan over ticks, which knows integers and functions.

A microbatch's way: its input waits in a mail slot; an action reads it, leaves what B will need in
a row of the stash and puts its result into the payload; the tick's meeting carries the payload over
the links that the tick uses; what arrives is put into the next mail slot.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from jaxpipe.executor.packing import Buffers, Packing
from jaxpipe.executor.program import NOWHERE, Program
from jaxpipe.mesh import PIPE

Cells = dict[str, jax.Array]  # one tick's integers, for this rank
Carry = dict[str, Any]
_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Action:
    """What a branch of the program does.

    Attributes:
      run: `(cells, carry) -> the parts of the carry that it writes`.
      writes: the names of those parts; they are updated in place.
    """

    run: Callable[[Cells, Carry], Carry]
    writes: tuple[str, ...]


def when(predicate: jax.Array, fn: Callable[[jax.Array, _T], _T], carry: _T) -> _T:
    """`fn(zero, carry)` where this rank's `predicate` holds, else `carry`; in place.

    `lax.cond` would return new buffers and copy the carry. XLA moves out of a loop what does not
    change in it, and then idle ranks would run that too: `zero` is the trip count, always 0 though
    the compiler cannot know, and what is indexed with `cell + zero` stays inside.
    """
    return lax.fori_loop(0, predicate.astype(jnp.int32), fn, carry)


def run_program(
    program: Program, actions: Sequence[Action], payload: Packing, carry: Carry, fill: float | None
) -> Carry:
    """Runs every tick. Inside `shard_map`, manual over `pipe`.

    Args:
      program: the integers.
      actions: one for each of the program's branches.
      payload: how values are packed to travel.
      carry: what the actions read and write; `payload` and `mail` are added here.
      fill: what mail and payload hold at the start. Nothing may ever read it: tests use NaN.
    """
    rank = lax.axis_index(PIPE)
    # One slot past the end takes what nobody wants.
    carry = carry | dict(
        payload=payload.empty(None, fill), mail=payload.empty(program.num_mail + 1, fill)
    )
    columns = {
        name: jnp.asarray(column)[:, rank] for name, column in _without_nowhere(program).items()
    }
    columns["pattern"] = jnp.asarray(program.pattern)
    if program.latency:
        # What a tick's meeting brings is put into the mail when the next tick begins: before any
        # action reads there, or XLA would copy all of it to let the two overlap.
        num_permutes = max(map(len, program.patterns), default=0)
        carry["arrived"] = [payload.empty(None, fill) for _ in range(num_permutes)]
        for column in ("first", "second"):
            late = jnp.concatenate([jnp.array([program.num_mail]), columns[column][:-1]])
            columns[column] = late

    def tick(carry: Carry, cells: Cells) -> tuple[Carry, None]:
        before, late = carry["payload"], {}
        if program.latency:
            carry = carry | dict(mail=_put(carry["arrived"], cells, carry["mail"]))
            late = dict(arrived=_meet(program, cells["pattern"], before))
        for number, action in enumerate(actions, 1):
            carry = _act(action, cells["branch"] == number, cells, carry)
        mail = carry["mail"]
        if (program.table["keep"] != NOWHERE).any():
            mail = _put([carry["payload"]], dict(first=cells["keep"]), mail)
        if not program.latency:
            mail = _put(_meet(program, cells["pattern"], carry["payload"]), cells, mail)
        return carry | dict(mail=mail) | late, None

    return lax.scan(tick, carry, columns)[0]


def _put(arrivals: Sequence[Buffers], cells: Cells, mail: Buffers) -> Buffers:
    for column, arrived in zip(("first", "second"), arrivals, strict=False):
        mail = [
            lax.dynamic_update_index_in_dim(box, x, cells[column], 0)
            for box, x in zip(mail, arrived, strict=True)
        ]
    return mail


def _meet(program: Program, pattern: jax.Array, sent: Buffers) -> list[Buffers]:
    num_permutes = max(map(len, program.patterns), default=0)
    if not num_permutes:
        return []
    # The pattern is the same on every rank, so all take the same branch and meet.
    meetings = [_meeting(permutes, num_permutes) for permutes in program.patterns]
    return lax.switch(pattern, meetings, sent)


def _without_nowhere(program: Program) -> dict[str, Any]:
    """The table with every index in range: arrivals for nobody go to the spare mail slot."""
    spare: dict[str, int] = dict.fromkeys(("keep", "first", "second"), program.num_mail)
    out = {}
    for name, column in program.table.items():
        out[name] = column.copy()
        out[name][column == NOWHERE] = spare.get(name, 0)
    return out


def _act(action: Action, predicate: jax.Array, cells: Cells, carry: Carry) -> Carry:
    def body(zero: jax.Array, mine: Carry) -> Carry:
        here = {name: cell + zero for name, cell in cells.items()}
        return action.run(here, carry | mine)

    return carry | when(predicate, body, {name: carry[name] for name in action.writes})


def _deliver(
    program: Program, packing: Packing, cells: Cells, own: Buffers, sent: Buffers, mail: Buffers
) -> Buffers:
    """Takes the payload over this tick's links and puts what arrives into the mail."""
    put = lambda mail, arrived, slot: [
        lax.dynamic_update_index_in_dim(box, x, slot, 0)
        for box, x in zip(mail, arrived, strict=True)
    ]
    if (program.table["keep"] != NOWHERE).any():
        mail = put(mail, own, cells["keep"])
    num_permutes = max(map(len, program.patterns), default=0)
    if not num_permutes:
        return mail
    # The pattern is the same on every rank, so all take the same branch and meet.
    meetings = [_meeting(permutes, num_permutes) for permutes in program.patterns]
    arrivals = lax.switch(cells["pattern"], meetings, sent)
    for column, arrived in zip(("first", "second"), arrivals, strict=False):
        mail = put(mail, arrived, cells[column])
    return mail


def _meeting(
    permutes: Sequence[Sequence[tuple[int, int]]], num_permutes: int
) -> Callable[[Buffers], list[Buffers]]:
    def meet(sent: Buffers) -> list[Buffers]:
        arrived = [[lax.ppermute(x, PIPE, permute) for x in sent] for permute in permutes]
        return arrived + [sent] * (num_permutes - len(permutes))

    return meet
