"""Schedules in files: the text form, and the CSV that PyTorch's pipelining writes and reads.

The CSV has a line for each rank and a cell for each action, as in `0F0,0F1,,0B0`; an empty cell
is a bubble. It is the compute-only form of `torch.distributed.pipelining`: `F`, `I` (input
gradient), `W` (weight gradient) and `B` (full backward) mean the same here and there.
"""

import csv
import io
import re
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path

from jaxpipe.errors import ScheduleError
from jaxpipe.schedules.table import (
    Action,
    Order,
    Row,
    Schedule,
    dump,
    needs,
    parse,
    parse_action,
    ready,
)

# PyTorch's cell for a forward and a backward that may run as one: (0F7;7B3)OVERLAP_F_B
_OVERLAP = re.compile(r"\(([^;()]*);([^;()]*)\)OVERLAP_F_B")
_NOT_COMPUTE = re.compile(r"SEND_|RECV_|SHARD|REDUCE_GRAD")


def load(path: str | Path) -> Schedule:
    """Reads a schedule from a file: CSV if its name ends in `.csv`, else the text form.

    Whether the schedule is right is for `verify` to say.

    Raises:
      ScheduleError: with the file, the line, and the cell if it is in a row.
      OSError: the file cannot be read.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets write a mark of byte order
        return parse_csv(text, name=path.stem) if path.suffix.lower() == ".csv" else parse(text)
    except UnicodeDecodeError:
        raise ScheduleError(f"{path} is not a text file; expected UTF-8.") from None
    except ScheduleError as error:
        raise ScheduleError(f"{path}: {error}") from None


def save(schedule: Schedule, path: str | Path) -> None:
    """Writes a schedule to a file: CSV if its name ends in `.csv`, else the text form.

    Raises:
      ScheduleError: the schedule's name cannot be written as text.
      OSError: the file cannot be written.
    """
    path = Path(path)
    text = dump_csv(schedule) if path.suffix.lower() == ".csv" else dump(schedule)
    path.write_text(text, encoding="utf-8", newline="")


def dump_csv(schedule: Schedule) -> str:
    """The schedule's rows as CSV, which has no place for its name and latency.

    >>> from jaxpipe.schedules.families.one_f_one_b import one_f_one_b
    >>> print(dump_csv(one_f_one_b(2, 2)).replace("\\r", ""), end="")
    0F0,0F1,,0B0,,0B1
    ,1F0,1B0,1F1,1B1,
    """
    text = io.StringIO()
    csv.writer(text).writerows(schedule.rows)  # writes str(action), and nothing for None
    return text.getvalue()


def parse_csv(text: str, *, name: str) -> Schedule:
    """Reads a CSV. Each stage lives on the rank whose line names it, or names it most often.

    The cells are the ticks if every action comes after what it needs. If not, they are the order
    of each rank, as PyTorch reads them, and each action goes to the earliest tick that it can
    have; those that wait for each other in vain stand behind all others, where `verify` finds
    them. If anything else is wrong, the cells stay as they are, for `verify` to point at.

    A cell with two actions, `(0F7;7B3)OVERLAP_F_B`, becomes two cells.

    Args:
      text: the whole file.
      name: what to call the schedule.

    Raises:
      ScheduleError: a cell that is no action, with its line and its number in the line, both
        from 1; or a stage that no line names.

    >>> print(parse_csv("0F0,0F1,0B0,0B1\\n1F0,1B0,1F1,1B1", name="order"))
    order: 2 ranks, 2 stages, 2 microbatches, 6 ticks; bubble 33.3% at costs F=1 B=2
    rank 0 | F0 F1 .  B0 .  B1 | held 2
    rank 1 | .  F0 B0 F1 B1 .  | held 1
    """
    rows = [_read_line(line, cells) for line, cells in enumerate(_lines(text), start=1)]
    placement = _placement(rows)
    microbatches = [action.microbatch for row in rows for action in row if action]
    width = max(map(len, rows))
    table = tuple((*row, *[None] * (width - len(row))) for row in rows)
    if not _in_time(table, placement) and _consistent(table, placement):
        table = _early([[action for action in row if action] for row in rows], placement)
    return Schedule(name, placement, 1 + max(microbatches), table)


def _lines(text: str) -> list[list[str]]:
    """The cells of each line, without blank lines at the end."""
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise ScheduleError(f"not CSV: {error}.") from None
    while lines and not any(cell.strip() for cell in lines[-1]):
        lines.pop()
    if not lines:
        raise ScheduleError("there are no cells; expected a line for each rank, as in 0F0,,0B0.")
    return lines


def _read_line(line: int, cells: Sequence[str]) -> Row:
    """The actions of one rank."""
    row: list[Action | None] = []
    for number, cell in enumerate(map(str.strip, cells), start=1):
        overlap = _OVERLAP.fullmatch(cell)
        try:
            for part in overlap.groups() if overlap else [cell]:
                row.append(parse_action(part.strip()) if part.strip() else None)
        except ScheduleError as error:
            hint = ""
            if _NOT_COMPUTE.search(cell):
                hint = ' Communication is made here: write the file with format="compute_only".'
            raise ScheduleError(f"line {line}, cell {number}: {error}{hint}") from None
    return tuple(row)


def _placement(rows: Sequence[Row]) -> tuple[int, ...]:
    """Stage -> the rank whose row has the most of its actions."""
    votes = [Counter(action.stage for action in row if action) for row in rows]
    num_stages = 1 + max(stage for vote in votes for stage in vote)
    for stage in range(num_stages):
        if not any(vote[stage] for vote in votes):
            raise ScheduleError(
                f"stage {stage} stands in no cell; expected stages 0 to {num_stages - 1}, the"
                " highest. Add its actions, or number the stages without gaps."
            )
    return tuple(
        max(range(len(rows)), key=lambda rank: votes[rank][stage]) for stage in range(num_stages)
    )


def _consistent(rows: Sequence[Row], placement: Sequence[int]) -> bool:
    """Whether each action stands once, on its rank, and what it needs stands somewhere."""
    actions = [action for row in rows for action in row if action]
    known = set(actions)
    at_home = all(
        placement[action.stage] == rank for rank, row in enumerate(rows) for action in row if action
    )
    groups = [group for action in known for group in needs(action, len(placement))]
    return (
        len(known) == len(actions)
        and at_home
        and all(known.intersection(group) for group in groups)
    )


def _in_time(rows: Sequence[Row], placement: Sequence[int]) -> bool:
    """Whether every action comes at a tick when all that it needs has run."""
    ends: dict[Action, float] = {}
    for tick, column in enumerate(zip(*rows, strict=True)):
        actions = [action for action in column if action]
        for action in actions:
            at = ready(action, placement, ends, hop=0)
            if at is None or at > tick:
                return False
        ends |= dict.fromkeys(actions, tick + 1)
    return True


def _early(order: Order, placement: Sequence[int]) -> tuple[Row, ...]:
    """Each action at its earliest tick; behind these, those that wait in vain."""
    queues = [deque(actions) for actions in order]
    rows: list[list[Action | None]] = [[] for _ in order]
    ends: dict[Action, float] = {}
    while any(queues):
        heads = [queue[0] if queue else None for queue in queues]
        can = [bool(head) and ready(head, placement, ends, hop=0) is not None for head in heads]
        if not any(can):
            can = [bool(head) for head in heads]
        for row, queue, goes in zip(rows, queues, can, strict=True):
            row.append(queue.popleft() if goes else None)
        tick_ends = len(rows[0])
        ends |= {row[-1]: tick_ends for row in rows if row[-1]}
    return tuple(map(tuple, rows))
