"""The schedule that a model is given when it asks for none by name.

Times are estimated: FLOPs of each stage's F, B, I and W, as XLA counts them before it optimises.
What a microbatch keeps is counted in bytes, as the executor will lay it out.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jaxpipe.backward import StageCode
from jaxpipe.costs import flops
from jaxpipe.errors import LayerError, PartitionError, ScheduleError
from jaxpipe.executor.actions import left_packing, stash_packing
from jaxpipe.mesh import PIPE, axis_size
from jaxpipe.schedules import Costs, Found, Kept, Lockstep, placements, search
from jaxpipe.schedules.simulate import at_stage
from jaxpipe.stages import Stages

# Stages on a rank, where nobody says how many: more of them compile longer.
_CHUNKS = 2
# A schedule with more stages, or more memory, must be faster by this share to be taken.
_WORTH = 0.01


@dataclasses.dataclass(frozen=True)
class Auto:
    """A schedule that is still to be found, when the shapes of a batch are known.

    Attributes:
      num_ranks: places in the pipeline.
      num_microbatches: how many microbatches a batch is cut into.
      num_chunks: the most stages on a rank.
      memory_limit: bytes that a rank may keep for its backwards; without it, as many microbatches
        as the first rank of 1F1B keeps, each with what I leaves beside it.
      lockstep: the loop that will run it.
    """

    num_ranks: int
    num_microbatches: int
    num_chunks: int
    memory_limit: float | None
    lockstep: Lockstep

    @classmethod
    def on(
        cls,
        mesh: Mesh,
        num_microbatches: int,
        num_chunks: int | None,
        memory_limit: float | None,
    ) -> "Auto":
        """What to look for on a mesh.

        Raises:
          ScheduleError: a count below 1, or a limit that is no positive number.
        """
        if num_microbatches < 1:
            raise ScheduleError(f"got num_microbatches={num_microbatches}; expected at least 1.")
        if num_chunks is not None and num_chunks < 1:
            raise ScheduleError(f"got num_chunks={num_chunks}; expected at least 1.")
        if memory_limit is not None and not memory_limit > 0:
            raise ScheduleError(f"got memory_limit={memory_limit}; expected a number of bytes.")
        # XLA lets all ranks meet at each permute on CPU, only those that a link joins elsewhere.
        lockstep = Lockstep("all" if mesh.devices.flat[0].platform == "cpu" else "links")
        chunks = _CHUNKS if num_chunks is None else num_chunks
        return cls(axis_size(mesh, PIPE), num_microbatches, chunks, memory_limit, lockstep)

    def find(self, build: Callable[[Sequence[int]], Stages]) -> Found:
        """The fastest schedule within memory; of those as fast, the one with fewest stages.

        Args:
          build: traces the stages of a placement (stage -> rank).

        Raises:
          ScheduleError: nothing fits into memory.
          PartitionError: the model cannot be cut into as many stages as any placement has.
        """
        found: list[Found] = []
        errors: list[ScheduleError | PartitionError] = []
        limit = self.memory_limit
        estimates: dict[int, Estimate] = {}
        for placement in placements(self.num_ranks, self.num_chunks):
            count = len(placement)
            try:
                if count not in estimates:
                    estimates[count] = estimate(build(placement))
                costs, kept, split = estimates[count]
                if limit is None:  # one stage on each rank comes first
                    limit = at_stage(kept.I, 0) * min(self.num_ranks, self.num_microbatches)
                one = search(
                    placement, self.num_microbatches, costs, kept=kept, memory_limit=limit,
                    split=split, lockstep=self.lockstep,
                )  # fmt: skip
                found.append(one)
            except (ScheduleError, PartitionError) as error:
                errors.append(error)
        if not found:
            raise errors[0]
        fastest = min(one.makespan for one in found) * (1 + _WORTH)
        return min(
            (one for one in found if one.makespan <= fastest),
            key=lambda one: (one.schedule.num_stages, max(one.memory), one.makespan),
        )


class Estimate(NamedTuple):
    """What the ops of each stage cost.

    Attributes:
      costs: FLOPs.
      kept: bytes; stages share rows of the stash, so that each takes as much as the largest.
      split: whether every stage's backward can be cut into I and W.
    """

    costs: Costs
    kept: Kept
    split: bool


def estimate(stages: Stages) -> Estimate:
    """Counts what the ops of each stage take and keep, from shapes alone."""
    try:
        left, split = left_packing(stages.stations).bytes, True
    except LayerError:
        left, split = 0, False
    work = [_work(s.code, split) for s in stages.stations if s.code is not None]
    by_stage = [work[code] for code in stages.codes]
    costs: Any = {op: [one[op] for one in by_stage] for op in "FBIW"}
    row = stash_packing(stages.stations).bytes
    return Estimate(Costs(**costs), Kept(F=row, I=row + left), split)


def _work(code: StageCode, split: bool) -> dict[str, float]:
    """FLOPs of each op of a stage."""
    plan = code.plan
    given: tuple[Any, ...] = (list(plan.weights), list(code.kept), plan.context)
    found = dict(
        F=flops(code.forward, list(plan.weights), plan.x, plan.context),
        B=flops(code.backward, *given, plan.dy),
        I=0.0,
        W=0.0,
    )
    if split:
        _, left = jax.eval_shape(code.input_backward, *given, plan.dy)
        found |= dict(
            I=flops(code.input_backward, *given, plan.dy),
            W=flops(code.weight_backward, *given, left),
        )
    return found
