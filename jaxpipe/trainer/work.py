"""What a train step of a configuration does, in numbers known before it runs."""

import dataclasses
import math
import platform
from typing import Any

from jaxpipe.config import Config
from jaxpipe.data import Batch
from jaxpipe.engine import Engine
from jaxpipe.errors import JaxpipeError, first_few
from jaxpipe.mesh import first_pipeline
from jaxpipe.metrics import StepWork, peak_flops
from jaxpipe.partition import Partition
from jaxpipe.processes import ALONE, Processes
from jaxpipe.schedules import BACKWARD, estimated_costs, simulate
from jaxpipe.schedules.clocks import joined
from jaxpipe.state import TrainState
from jaxpipe.summary import StepRecord
from jaxpipe.summary.step import heard, told

_MEASURED = 2  # steps: the first one under a profiler is slower
_MOST_TOLD = 40_000  # actions, some 60 bytes each


def stage_flops(partition: Partition) -> tuple[float, ...]:
    """FLOPs of each stage's forward on a microbatch."""
    return tuple(
        sum(partition.layers[i].flops for i in partition.stage(stage))
        for stage in range(partition.num_stages)
    )


def step_work(engine: Engine, config: Config, example: Batch) -> StepWork:
    """What a step does.

    Its FLOPs are three times those of the layers' forwards as XLA counts them before it optimises,
    which is close to 6N + 12LHQT for each token (arXiv:2204.02311, appendix B).

    Args:
      engine: what runs it.
      config: what it was built from.
      example: a batch, for its shapes.
    """
    partition, schedule = engine.partition(example), engine.schedule
    flops = stage_flops(partition)
    pipeline, trainer = config.pipeline, config.trainer
    costs = estimated_costs(flops, recomputes=pipeline.remat != "none")
    microbatches = schedule.num_microbatches * pipeline.data
    total = (1 + BACKWARD) * sum(flops) * microbatches
    return StepWork(
        items=trainer.batch_size * config.data.units_per_sample,
        unit=config.data.unit,
        flops=total or None,
        peak=_peak(engine, config),
        bubble=simulate(schedule, costs, engine.lockstep).bubble_fraction,
    )


def step_record(
    engine: Engine, config: Config, partition: Partition, processes: Processes = ALONE
) -> StepRecord:
    """A step on paper; all processes call it together."""
    hosts = processes.exchange(platform.node(), "say where it runs")
    return StepRecord(
        schedule=engine.schedule,
        lockstep=engine.lockstep,
        flops=stage_flops(partition),
        recomputes=config.pipeline.remat != "none",
        hosts=tuple(hosts[device.process_index] for device in first_pipeline(engine.mesh)),
    )


def measured(
    step: StepRecord, engine: Engine, state: TrainState, batch: Batch, processes: Processes
) -> StepRecord:
    """A step with its measured times; the state is used up. All processes call it together.

    Args:
      step: on paper.
      engine: what runs it; it has run a step already.
      state: which the steps go on from.
      batch: to train on.
      processes: each times the ranks that it has.

    Raises:
      JaxpipeError: the profiler does not show single operations, in one of the processes; or there
        are more of them than processes tell each other.
    """
    schedule, timelines = step.schedule, []
    if processes.count > 1 and len(schedule.ticks()) > _MOST_TOLD:
        raise JaxpipeError(f"more than {_MOST_TOLD} actions, in {processes.count} processes")
    for _ in range(_MEASURED):
        own: Any = None
        try:
            state, _, timeline = engine.timeline(state, batch)
            own = told(timeline)
        except (JaxpipeError, RuntimeError, ValueError, OSError) as error:
            problem = str(error)  # the others are to hear of it before they go on
            own = problem if processes.count == 1 else f"process {processes.index}: {problem}"
        everybody = processes.exchange(own, "tell its timeline")
        if problems := [said for said in everybody if isinstance(said, str)]:
            raise JaxpipeError("; ".join(first_few(problems)))
        timelines.append(joined(schedule, [heard(said, schedule) for said in everybody]))
    return dataclasses.replace(step, measured=tuple(timelines))


def _peak(engine: Engine, config: Config) -> float | None:
    """Of all devices of the mesh together; None if one of them is not known."""
    devices, own = engine.mesh.devices.flat, config.metrics.peak_flops
    dtype = config.pipeline.compute_dtype
    peaks = [own or peak_flops(device.device_kind, dtype) for device in devices]
    return math.fsum(peak for peak in peaks if peak) if all(peaks) else None
