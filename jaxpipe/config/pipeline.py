"""How a model is cut, placed and run."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from jaxpipe.config.ranges import below, not_positive
from jaxpipe.errors import ScheduleError, nearest
from jaxpipe.partition import METHODS
from jaxpipe.schedules import AUTO, MOST_CHUNKS, NAMES, by_name, placements


@dataclass(frozen=True)
class PipelineConfig:
    """How the model is cut, placed and run."""

    ranks: int = 4
    """Places in the pipeline, each with as many stages as the schedule has chunks."""
    data: int = 1
    """Copies of the pipeline, each on its own part of a batch; devices = ranks x data x tensor."""
    tensor: int = 1
    """Devices that share each layer: its heads, hidden features and vocabulary."""
    sequence_parallel: bool = False
    """Whether these also share activations between layers, cut along time."""
    zero: int = 0
    """What copies share of a rank's state rather than each holding it (ZeRO): 0, nothing; 1, the
    optimizer's state; 2, gradients too; 3, parameters too."""
    zero_per: Literal["step", "use"] = "step"
    """How often what is shared in stages 2 and 3 is put together: once a step, or at each use."""
    microbatches: int = 8
    """Parts that a batch passes through the pipeline in."""
    schedule: str = "1f1b"
    """Which rank does what at which tick, by name; `jaxpipe draw NAME` shows it. auto: the fastest
    that a search finds for the FLOPs of the stages."""
    chunks: int | None = None
    """Stages on each rank, for interleaved, looped-bfs and interleaved-zb; null: 2 there. For auto,
    the most that it tries."""
    memory_limit: float | None = None
    """For auto: bytes that a rank may have for what backwards need of forwards; null: as much as so
    many microbatches take as there are ranks."""
    partition: str | tuple[int, ...] = "parameters"
    """How layers become stages: uniform, parameters, flops, type:REGEX, or the boundaries."""
    remat: Literal["none", "full"] | int = "none"
    """What the backward recomputes: none, full, or all but every so many layers' inputs."""
    compute_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the activations; parameters and the optimizer stay float32. float16 comes
    with a loss scale."""

    FREE = (
        *("ranks", "data", "tensor", "sequence_parallel", "zero", "zero_per", "microbatches"),
        *("schedule", "chunks", "memory_limit", "partition", "remat"),
    )

    @property
    def num_devices(self) -> int:
        """Devices of the whole mesh."""
        return self.ranks * self.data * self.tensor

    @property
    def num_stages(self) -> int:
        """As many as the schedule has; where that is wrong, which is said elsewhere, the ranks."""
        try:
            if self.schedule == AUTO:
                counts = [len(p) for p in placements(self.ranks, self.chunks or MOST_CHUNKS)]
                asked = len(self.partition) - 1 if isinstance(self.partition, tuple) else 0
                return asked if asked in counts else min(counts)
            return by_name(self.schedule, self.ranks, 1, num_chunks=self.chunks).num_stages
        except ScheduleError:
            return self.ranks

    def problems(self) -> Iterator[str]:
        """What is wrong with these settings, whatever the others are; a line each."""
        sizes = {
            "pipeline.ranks": self.ranks,
            "pipeline.data": self.data,
            "pipeline.tensor": self.tensor,
            "pipeline.microbatches": self.microbatches,
        }
        yield from below(1, sizes)
        if isinstance(self.remat, int) and self.remat < 1:
            yield f"pipeline.remat: got {self.remat}, expected 'none', 'full' or at least 1."
        yield from self._zero_problems()
        yield from self._schedule_problems()
        yield from self._partition_problems()

    def _zero_problems(self) -> Iterator[str]:
        if self.zero not in (0, 1, 2, 3):
            yield f"pipeline.zero: got {self.zero}, expected 0, 1, 2 or 3."
        elif self.zero_per == "use" and self.zero < 2:
            yield (
                f"pipeline.zero_per: got 'use' with pipeline.zero = {self.zero}, which shares"
                " nothing that is used within a step; use zero 2 or 3, or 'step'."
            )

    def _schedule_problems(self) -> Iterator[str]:
        limit = self.memory_limit
        if limit is not None and self.schedule != AUTO:
            yield (
                f"pipeline.memory_limit: got {limit:g} with schedule {self.schedule!r}; only auto"
                " chooses by memory. Set it to null, or the schedule to auto."
            )
        else:
            yield from not_positive({"pipeline.memory_limit": limit})
        if self.schedule == AUTO:
            yield from below(1, {"pipeline.chunks": self.chunks})
        elif self.schedule not in NAMES:
            hint = nearest(self.schedule, (*NAMES, AUTO))
            yield f"pipeline.schedule: unknown {self.schedule!r}; {hint}"
        elif self.ranks > 0 and self.microbatches > 0:
            try:
                by_name(self.schedule, self.ranks, self.microbatches, num_chunks=self.chunks)
            except ScheduleError as error:
                field = "schedule" if self.chunks is None else "chunks"
                yield f"pipeline.{field}: {error}"

    def _partition_problems(self) -> Iterator[str]:
        method = self.partition
        if isinstance(method, tuple):
            return  # boundaries, which only the number of layers can prove wrong
        if method.startswith("type:"):
            try:
                re.compile(method.removeprefix("type:"))
            except re.error as error:
                yield f"pipeline.partition: {method!r} holds no regular expression: {error}."
        elif method not in METHODS:
            yield (
                f"pipeline.partition: unknown {method!r}; {nearest(method, METHODS)} A list of"
                " boundaries works, too."
            )
