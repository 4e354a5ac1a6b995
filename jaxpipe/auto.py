"""The schedule that a model is given when it asks for none by name.

Times are estimated: FLOPs of each stage's F, B, I and W, as XLA counts them before it optimises.
What a microbatch keeps is counted in bytes, as the executor will lay it out.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from jaxpipe.backward import StageCode
from jaxpipe.costs import flops
from jaxpipe.errors import LayerError, PartitionError, ScheduleError
from jaxpipe.executor.actions import left_packing, stash_packing
from jaxpipe.mesh import traced_on
from jaxpipe.schedules import (
    MOST_CHUNKS,
    Costs,
    Found,
    Kept,
    Lockstep,
    Schedule,
    placements,
    search,
)
from jaxpipe.stages import Stages

# A schedule with more stages, or more memory, must be faster by this share to be taken.
_WORTH = 0.01
# How often the limit is lowered when what a table keeps at one time fits, but not all its rows.
_TRIES = 3


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What the ops of each stage cost.

    Attributes:
      costs: FLOPs.
      row: bytes that a microbatch keeps in a stage: rows of the stash fit every stage.
      left: bytes that I leaves beside it.
      split: whether every stage's backward can be cut into I and W.
    """

    costs: Costs
    row: int
    left: int
    split: bool

    @classmethod
    def of(cls, stages: Stages, mesh: Mesh) -> "Estimate":
        """Counts what the ops of each stage take and keep on a device, from shapes alone."""
        try:
            left, split = traced_on(mesh, lambda: left_packing(stages.stations).bytes), True
        except LayerError:
            left, split = 0, False
        work = [_work(s.code, split, mesh) for s in stages.stations if s.code is not None]
        by_stage = [work[code] for code in stages.codes]
        costs: Any = {op: [one[op] for one in by_stage] for op in "FBIW"}
        return cls(Costs(**costs), stash_packing(stages.stations).bytes, left, split)

    @property
    def kept(self) -> Kept:
        """What a microbatch keeps after F, and after I."""
        return Kept(F=self.row, I=self.row + self.left)

    def allocated(self, schedule: Schedule) -> int:
        """Bytes of all rows that the busiest ranks need, as every rank has them."""
        rows, left = Kept(F=1, I=1).peaks(schedule), Kept(F=0, I=1).peaks(schedule)
        return int(max(rows) * self.row + max(left) * self.left)


@dataclasses.dataclass(frozen=True)
class Auto:
    """A schedule that is still to be found, when the shapes of a batch are known.

    Attributes:
      placements: stage -> rank, of each placement that may be taken; few stages come first.
      num_microbatches: how many microbatches a batch is cut into.
      memory_limit: bytes that a rank may have for what its backwards need; without it, so many
        microbatches as there are ranks, each with what I leaves.
      lockstep: the loop that will run it.
    """

    placements: tuple[tuple[int, ...], ...]
    num_microbatches: int
    memory_limit: float | None
    lockstep: Lockstep

    @classmethod
    def on(
        cls,
        num_ranks: int,
        num_microbatches: int,
        *,
        num_chunks: int | None,
        num_stages: int | None,
        memory_limit: float | None,
        lockstep: Lockstep,
    ) -> "Auto":
        """What to look for on so many ranks; the arguments of `jaxpipe.initialize`.

        Raises:
          ScheduleError: a count below 1, a limit that is no positive number, or no placement that
            has `num_stages`.
        """
        if num_microbatches < 1:
            raise ScheduleError(f"got num_microbatches={num_microbatches}; expected at least 1.")
        if memory_limit is not None and not memory_limit > 0:
            raise ScheduleError(f"got memory_limit={memory_limit}; expected a number of bytes.")
        known = placements(num_ranks, MOST_CHUNKS if num_chunks is None else num_chunks)
        fit = [stages for stages in known if num_stages in (None, len(stages))]
        if not fit:
            counts = sorted({len(stages) for stages in known})
            raise ScheduleError(
                f"the model asks for num_stages={num_stages}; on {num_ranks} ranks 'auto' tries"
                f" {' or '.join(map(str, counts))}. Leave num_stages out, or set num_chunks."
            )
        return cls(tuple(fit), num_microbatches, memory_limit, lockstep)

    def find(self, build: Callable[[Sequence[int]], Stages], mesh: Mesh) -> Schedule:
        """The fastest schedule within memory; of those as fast, the one with fewest stages.

        Args:
          build: traces the stages of a placement (stage -> rank).
          mesh: whose axes they may name.

        Raises:
          ScheduleError: nothing fits into memory.
          PartitionError: the model cannot be cut into as many stages as any placement has.
        """
        found: list[Found] = []
        errors: list[ScheduleError | PartitionError] = []
        limit, estimates = self.memory_limit, {}
        for placement in self.placements:
            try:
                if len(placement) not in estimates:
                    estimates[len(placement)] = Estimate.of(build(placement), mesh)
                estimate = estimates[len(placement)]
                limit = self._default(placement, estimate) if limit is None else limit
                found += self._within(placement, estimate, limit)
            except (ScheduleError, PartitionError) as error:
                errors.append(error)
        if not found:
            # What the model cannot have says less than what does not fit into memory.
            raise min(errors, key=lambda error: isinstance(error, PartitionError))
        fastest = min(one.makespan for one in found) * (1 + _WORTH)
        return min(
            (one for one in found if one.makespan <= fastest),
            key=lambda one: (one.schedule.num_stages, max(one.memory), one.makespan),
        ).schedule

    def _default(self, placement: Sequence[int], estimate: Estimate) -> float:
        """So many microbatches in all stages of a rank as there are ranks."""
        num_ranks = 1 + max(placement)
        held = min(num_ranks, self.num_microbatches) * len(placement) / num_ranks
        return held * (estimate.row + estimate.left)

    def _within(
        self, placement: Sequence[int], estimate: Estimate, limit: float
    ) -> Iterator[Found]:
        """Tables whose rows all fit, with whole backwards, and with split ones where there are any.

        The search knows what is kept at one time; the rows of F and those of I may be needed most
        at different times, and on different ranks.
        """
        look = lambda most, split: search(
            placement, self.num_microbatches, estimate.costs, kept=estimate.kept,
            memory_limit=most, split=split, lockstep=self.lockstep,
        )  # fmt: skip
        yield look(limit, False)
        most = limit
        for _ in range(_TRIES if estimate.split else 0):
            try:
                found = look(most, True)
            except ScheduleError:
                return
            needed = estimate.allocated(found.schedule)
            if needed <= limit:
                yield found
                return
            most *= limit / needed


def _work(code: StageCode, split: bool, mesh: Mesh) -> dict[str, float]:
    """FLOPs of each op of a stage."""
    plan, count = code.plan, functools.partial(flops, mesh=mesh)
    given: tuple[Any, ...] = (list(plan.weights), list(code.kept), plan.context)
    found = dict(
        F=count(code.forward, list(plan.weights), plan.x, plan.context),
        B=count(code.backward, *given, plan.dy),
        I=0.0,
        W=0.0,
    )
    if split:
        first = lambda: jax.eval_shape(code.input_backward, *given, plan.dy)
        _, left = traced_on(mesh, first)
        found |= dict(
            I=count(code.input_backward, *given, plan.dy),
            W=count(code.weight_backward, *given, left),
        )
    return found
