"""A program: a schedule as integers, which is all of it that reaches the device."""

import dataclasses

import numpy as np

from jaxpipe.schedules.meetings import Permute

# What one cell (tick, rank) says. IDLE and NOWHERE mark cells that do nothing there.
COLUMNS = ("branch", "microbatch", "layer", "read", "row", "left", "keep")
ARRIVAL = "arrival {}"  # a column for each permute of a meeting
IDLE = 0
NOWHERE = -1

# What a branch does: an op of the schedule, or F and B of the last stage in one, with no stash.
F, B, I, W, FUSED = BRANCH_OPS = ("F", "B", "I", "W", "FB")


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A schedule lowered to integers.

    Attributes:
      name: the schedule's.
      branches: what the numbers 1.. of the `branch` column run: (one of BRANCH_OPS, number of the
        stage code).
      table: {column: int32[ticks, ranks]}:
        branch      which of `branches` runs, 0 for a bubble
        microbatch  which microbatch of the rank's part of the batch
        layer       index of the stage's first layer
        read        mail slot of the action's input
        row         stash row where F leaves its residuals and B, or I and W, find them
        left        row where I leaves what W needs beyond
        keep        mail slot for what the action made, when its reader is the rank itself
        arrival n   mail slot for what arrives by the n-th permute of the tick's meeting
      pattern: int32[ticks], which of `patterns` the tick's meeting follows.
      patterns: the permutes of each meeting; none where nobody meets.
      latency: whether a meeting takes place while its tick works, with what was there before.
      num_mail: mail slots.
      num_rows: stash rows.
      num_left: rows for what I leaves.
      held: microbatches that each rank holds between F and B, at most.
    """

    name: str
    branches: tuple[tuple[str, int], ...]
    table: dict[str, np.ndarray]
    pattern: np.ndarray
    patterns: tuple[tuple[Permute, ...], ...]
    latency: int
    num_mail: int
    num_rows: int
    num_left: int
    held: tuple[int, ...]

    @property
    def num_ticks(self) -> int:
        """Ticks of one step."""
        return len(self.pattern)

    @property
    def num_ranks(self) -> int:
        """Ranks of the table."""
        return self.table["branch"].shape[1]

    @property
    def num_permutes(self) -> int:
        """Permutes of the busiest meeting."""
        return max(map(len, self.patterns), default=0)

    @property
    def arrivals(self) -> list[str]:
        """The names of the columns for what arrives."""
        return [ARRIVAL.format(number) for number in range(self.num_permutes)]

    def __str__(self) -> str:
        numbered = [f"{i}={op}{code}" for i, (op, code) in enumerate(self.branches, 1)]
        lines = [
            f"program {self.name}: {self.num_ticks} ticks, {self.num_ranks} ranks,"
            f" {self.num_mail} mail slots, {self.num_rows} stash rows (held {list(self.held)}),"
            f" {self.num_left} rows from I to W",
            f"branches: 0=idle {' '.join(numbered)} (op, then number of the stage code)",
            "cells: branch:microbatch, r read slot, s stash row, w row from I to W, > slots that"
            " arrivals write",
            "",
        ]
        cells = [
            [self._cell(tick, rank) for rank in range(self.num_ranks)] + [self._meeting(tick)]
            for tick in range(self.num_ticks)
        ]
        header = [f"rank {rank}" for rank in range(self.num_ranks)] + ["links"]
        widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
        for label, row in zip(
            ["tick", *map(str, range(self.num_ticks))], [header, *cells], strict=True
        ):
            shown = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            lines.append(f"{label:>4}  {shown}".rstrip())
        return "\n".join(lines)

    def _cell(self, tick: int, rank: int) -> str:
        get = lambda column: int(self.table[column][tick, rank])
        text = "."
        if get("branch") != IDLE:
            text = f"{get('branch')}:{get('microbatch')}"
            text += f" r{get('read')}" if get("read") != NOWHERE else ""
            text += f" s{get('row')}" if get("row") != NOWHERE else ""
            text += f" w{get('left')}" if get("left") != NOWHERE else ""
        arrivals = [get(column) for column in ("keep", *self.arrivals)]
        return text + "".join(f" >{slot}" for slot in arrivals if slot != NOWHERE)

    def _meeting(self, tick: int) -> str:
        permutes = self.patterns[self.pattern[tick]]
        return " | ".join(" ".join(f"{a}-{b}" for a, b in permute.links) for permute in permutes)
