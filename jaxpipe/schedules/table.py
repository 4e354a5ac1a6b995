"""What a schedule is: a table of actions by rank and tick, the rule of needs, and its text form.

A schedule is data. Nothing here knows of JAX, of devices or of seconds.
"""

import dataclasses
import enum
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

from jaxpipe.errors import ScheduleError, nearest


class Op(enum.StrEnum):
    """What an action does with its stage and microbatch."""

    F = "F"  # forward
    B = "B"  # full backward: input and weight gradients together
    I = "I"  # input gradient only
    W = "W"  # weight gradient only, some time after I


class Action(NamedTuple):
    """One op of one stage on one microbatch.

    >>> str(Action(2, Op.F, 0))
    '2F0'
    """

    stage: int
    op: Op
    microbatch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.op}{self.microbatch}"


Order: TypeAlias = Sequence[Sequence[Action]]
"""`order[rank]`: what a rank does, one action after the other, without time."""

Row: TypeAlias = tuple[Action | None, ...]
"""One rank, tick by tick; `None` is a bubble."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Who does what, when: `rows[rank][tick]`. `print` draws it.

    Anything fits in the table: `verify` says whether it computes the right thing.

    Attributes:
      name: what to call it in drawings and messages.
      placement: `placement[stage]` is the rank that owns the stage.
      num_microbatches: how many microbatches a batch is cut into.
      rows: `rows[rank][tick]`, an action or `None` for a bubble.
      latency: extra ticks that a hop between ranks takes. What an action makes at tick t may be
        used on its own rank from tick t + 1, and on another from tick t + 1 + latency.
    """

    name: str
    placement: tuple[int, ...]
    num_microbatches: int
    rows: tuple[Row, ...]
    latency: int = 0

    @property
    def num_ranks(self) -> int:
        """How many ranks the table has."""
        return len(self.rows)

    @property
    def num_stages(self) -> int:
        """How many stages are placed on the ranks."""
        return len(self.placement)

    @property
    def num_ticks(self) -> int:
        """How many ticks the longest row has."""
        return max(map(len, self.rows), default=0)

    @property
    def num_chunks(self) -> int:
        """The most stages that one rank owns."""
        return max(map(self.placement.count, self.placement), default=0)

    @property
    def order(self) -> list[list[Action]]:
        """What each rank does, one action after the other: the rows without their bubbles."""
        return [[action for action in row if action] for row in self.rows]

    def ticks(self) -> dict[Action, int]:
        """The tick of each action."""
        return {action: tick for row in self.rows for tick, action in enumerate(row) if action}

    def __str__(self) -> str:
        from jaxpipe.schedules import draw  # `draw` stands above the table: it imports it

        return draw.text(self)


def needs(action: Action, num_stages: int) -> tuple[tuple[Action, ...], ...]:
    """What must come before an action: one of each group. The only place that knows this rule.

    >>> [[str(a) for a in group] for group in needs(Action(1, Op.B, 0), num_stages=4)]
    [['1F0'], ['2B0', '2I0']]

    Raises:
      ScheduleError: there is no such stage or op.
    """
    stage, op, microbatch = action
    if not 0 <= stage < num_stages:
        raise ScheduleError(
            f"{action}: there is no stage {stage}; expected stages 0 to {num_stages - 1}."
        )
    match op:
        case Op.F:
            return ((Action(stage - 1, Op.F, microbatch),),) if stage > 0 else ()
        case Op.B | Op.I:
            forward = (Action(stage, Op.F, microbatch),)
            if stage == num_stages - 1:
                return (forward,)
            gradient = tuple(Action(stage + 1, from_op, microbatch) for from_op in (Op.B, Op.I))
            return (forward, gradient)
        case Op.W:
            return ((Action(stage, Op.I, microbatch),),)
        case _:
            raise ScheduleError(f"{action}: there is no op {op!r}; expected F, B, I or W.")


def ready(
    action: Action, placement: Sequence[int], ends: Mapping[Action, float], hop: float
) -> float | None:
    """When all that `action` needs is on its rank, or `None` while something has not run.

    Time is in any unit: in ticks, an action at tick t ends at t + 1 and a hop is the latency.

    Args:
      action: the action that wants to run.
      placement: stage -> rank.
      ends: when each action that has run ended.
      hop: what a value takes from one rank to another.
    """
    at: float = 0
    for group in needs(action, len(placement)):
        arrivals = [
            ends[need] + (hop if placement[need.stage] != placement[action.stage] else 0)
            for need in group
            if need in ends
        ]
        if not arrivals:
            return None
        at = max(at, min(arrivals))
    return at


# --- Text -----------------------------------------------------------------------------------------

_ACTION = re.compile(r"([0-9]+)([FBIW])([0-9]+)")
_RANK = re.compile(r"rank ([0-9]+)")
_FIELDS = ("schedule", "placement", "num_microbatches", "latency")


def parse_action(text: str) -> Action:
    """Reads `2F0`; the inverse of `str(action)`.

    >>> parse_action("2F0")
    Action(stage=2, op=<Op.F: 'F'>, microbatch=0)

    Raises:
      ScheduleError: the text is no action.
    """
    match = _ACTION.fullmatch(text)
    if match is None:
        raise ScheduleError(
            f"{text!r} is not an action; expected <stage><op><microbatch> with op F, B, I or W,"
            " such as 2F0."
        )
    return Action(int(match[1]), Op(match[2]), int(match[3]))


def dump(schedule: Schedule) -> str:
    """The schedule as text, to keep in a file and to edit by hand; `parse` reads it.

    Raises:
      ScheduleError: the name does not fit on the line that is kept for it.
    """
    name = schedule.name
    if not name or name != " ".join(name.split()):
        raise ScheduleError(
            f"the name {name!r} cannot be written as text; expected words with single spaces"
            " between them. Rename it: dataclasses.replace(schedule, name=...)."
        )
    cells = [[str(action) if action else "." for action in row] for row in schedule.rows]
    width = max((len(cell) for row in cells for cell in row), default=0)
    lines = [
        f"schedule: {name}",
        f"placement: {' '.join(map(str, schedule.placement))}",
        f"num_microbatches: {schedule.num_microbatches}",
        f"latency: {schedule.latency}",
    ]
    for rank, row in enumerate(cells):
        lines.append(f"rank {rank}: {' '.join(cell.ljust(width) for cell in row)}".rstrip())
    return "\n".join(lines) + "\n"


def parse(text: str) -> Schedule:
    """Reads what `dump` writes. Blank lines and lines that start with `#` do not count.

    `parse` only reads: whether the schedule is right is for `verify` to say.

    >>> print(parse('''
    ... schedule: tiny
    ... placement: 0
    ... num_microbatches: 2
    ... latency: 0
    ... rank 0: 0F0 0B0 0F1 0B1
    ... ''').rows[0][1])
    0B0

    Raises:
      ScheduleError: with the line, and the cell if it is in a row.
    """
    fields: dict[str, tuple[int, str]] = {}  # key -> the line it stands on, its value
    rows: list[Row] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        key, colon, value = (part.strip() for part in line.partition(":"))
        if not colon:
            raise ScheduleError(f"line {number}: {line.strip()!r}; expected `key: value`.")
        if match := _RANK.fullmatch(key):
            if int(match[1]) != len(rows):
                raise ScheduleError(f"line {number}: got {key}; expected rank {len(rows)}.")
            rows.append(_read_row(number, value))
        elif key not in _FIELDS:
            known = nearest(key, (*_FIELDS, f"rank {len(rows)}"))
            raise ScheduleError(f"line {number}: unknown key {key!r}; {known}")
        elif key in fields:
            raise ScheduleError(f"line {number}: {key!r} stands on line {fields[key][0]} already.")
        else:
            fields[key] = (number, value)
    for key in _FIELDS:
        if key not in fields:
            raise ScheduleError(f"there is no line `{key}: ...`; a schedule needs {_FIELDS}.")
    return Schedule(
        name=fields["schedule"][1],
        placement=_read_integers(*fields["placement"]),
        num_microbatches=_read_integer(*fields["num_microbatches"]),
        rows=tuple(rows),
        latency=_read_integer(*fields["latency"]),
    )


def _read_row(line: int, text: str) -> Row:
    """The cells of one rank."""
    row: list[Action | None] = []
    for tick, cell in enumerate(text.split()):
        try:
            row.append(None if cell == "." else parse_action(cell))
        except ScheduleError as error:
            raise ScheduleError(f"line {line}, tick {tick}: {error}") from None
    return tuple(row)


def _read_integers(line: int, text: str) -> tuple[int, ...]:
    """Integers with spaces between them."""
    try:
        return tuple(int(word) for word in text.split())
    except ValueError:
        raise ScheduleError(f"line {line}: got {text!r}; expected integers.") from None


def _read_integer(line: int, text: str) -> int:
    """One integer."""
    integers = _read_integers(line, text)
    if len(integers) != 1:
        raise ScheduleError(f"line {line}: got {text!r}; expected one integer.")
    return integers[0]
