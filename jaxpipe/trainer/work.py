"""What a train step of a configuration does, in numbers known before it runs."""

import dataclasses
import math
import platform

from jaxpipe.config import Config
from jaxpipe.data import Batch
from jaxpipe.engine import Engine
from jaxpipe.metrics import StepWork, peak_flops
from jaxpipe.partition import Partition
from jaxpipe.schedules import BACKWARD, estimated_costs, simulate
from jaxpipe.state import TrainState
from jaxpipe.summary import StepRecord

_MEASURED = 2  # steps: the first one under a profiler is slower


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


def step_record(engine: Engine, config: Config, partition: Partition) -> StepRecord:
    """A step on paper."""
    return StepRecord(
        schedule=engine.schedule,
        lockstep=engine.lockstep,
        flops=stage_flops(partition),
        recomputes=config.pipeline.remat != "none",
        hosts=(platform.node(),) * engine.schedule.num_ranks,
    )


def measured(step: StepRecord, engine: Engine, state: TrainState, batch: Batch) -> StepRecord:
    """A step with its measured times; the state is used up.

    Args:
      step: on paper.
      engine: what runs it; all of it in this process, and it has run a step already.
      state: which the steps go on from.
      batch: to train on.

    Raises:
      JaxpipeError: the profiler does not show single operations.
    """
    timelines = []
    for _ in range(_MEASURED):
        state, _, timeline = engine.timeline(state, batch)
        timelines.append(timeline)
    return dataclasses.replace(step, measured=tuple(timelines))


def _peak(engine: Engine, config: Config) -> float | None:
    """Of all devices of the mesh together; None if one of them is not known."""
    devices, own = engine.mesh.devices.flat, config.metrics.peak_flops
    dtype = config.pipeline.compute_dtype
    peaks = [own or peak_flops(device.device_kind, dtype) for device in devices]
    return math.fsum(peak for peak in peaks if peak) if all(peaks) else None
