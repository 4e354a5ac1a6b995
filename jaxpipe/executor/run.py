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
import numpy as np
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
    # One slot past the end takes what nobody wants.
    carry = carry | dict(
        payload=payload.empty(None, fill),
        mail=payload.empty(program.num_mail + 1, fill),
        arrived=[payload.empty(None, fill) for _ in range(program.latency * _permutes(program))],
    )

    def tick(carry: Carry, cells: Cells) -> tuple[Carry, None]:
        if not program.latency:
            carry = _work(program, actions, cells, carry)
            return _deliver(_meet(program, cells, carry), cells, carry), None
        # What met while the last tick worked goes into the mail before any action reads there: XLA
        # would copy all of the mail to let the two overlap.
        carry = _deliver(carry["arrived"], cells, carry)
        arrived = _meet(program, cells, carry)
        return _work(program, actions, cells, carry) | dict(arrived=arrived), None

    return lax.scan(tick, carry, _columns(program))[0]


def _columns(program: Program) -> Cells:
    """This rank's integers by tick, all in range: arrivals for nobody go to the spare mail slot."""
    rank, out = lax.axis_index(PIPE), {}
    for name, column in program.table.items():
        spare = program.num_mail if name in ("keep", "first", "second") else 0
        column = np.where(column == NOWHERE, spare, column)
        if program.latency and name in ("first", "second"):  # one tick after its meeting
            column = np.concatenate([np.full_like(column[:1], spare), column[:-1]])
        out[name] = jnp.asarray(column)[:, rank]
    return out | dict(pattern=jnp.asarray(program.pattern))


def _work(program: Program, actions: Sequence[Action], cells: Cells, carry: Carry) -> Carry:
    """This tick's action, if any, and its result to the rank's own mail, if that reads it."""
    for number, action in enumerate(actions, 1):

        def body(
            zero: jax.Array, mine: Carry, action: Action = action, all: Carry = carry
        ) -> Carry:
            here = {name: cell + zero for name, cell in cells.items()}
            return action.run(here, all | mine)

        mine = {name: carry[name] for name in action.writes}
        carry = carry | when(cells["branch"] == number, body, mine)
    if (program.table["keep"] == NOWHERE).all():
        return carry
    return carry | dict(mail=_put(carry["payload"], cells["keep"], carry["mail"]))


def _deliver(arrivals: Sequence[Buffers], cells: Cells, carry: Carry) -> Carry:
    """What a meeting brought, into its mail slots."""
    mail = carry["mail"]
    for column, arrived in zip(("first", "second"), arrivals, strict=False):
        mail = _put(arrived, cells[column], mail)
    return carry | dict(mail=mail)


def _put(payload: Buffers, slot: jax.Array, mail: Buffers) -> Buffers:
    pairs = zip(mail, payload, strict=True)
    return [lax.dynamic_update_index_in_dim(box, x, slot, 0) for box, x in pairs]


def _permutes(program: Program) -> int:
    """Permutes of the busiest meeting: 0 for one rank, at most 2."""
    return max(map(len, program.patterns), default=0)


def _meet(program: Program, cells: Cells, carry: Carry) -> list[Buffers]:
    """Takes the payload over this tick's links: what arrives, by permute."""
    if not _permutes(program):
        return []
    # The pattern is the same on every rank, so all take the same branch and meet.
    meetings = [_meeting(permutes, _permutes(program)) for permutes in program.patterns]
    return lax.switch(cells["pattern"], meetings, carry["payload"])


def _meeting(
    permutes: Sequence[Sequence[tuple[int, int]]], num_permutes: int
) -> Callable[[Buffers], list[Buffers]]:
    def meet(sent: Buffers) -> list[Buffers]:
        arrived = [[lax.ppermute(x, PIPE, permute) for x in sent] for permute in permutes]
        return arrived + [sent] * (num_permutes - len(permutes))

    return meet
