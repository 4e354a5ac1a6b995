"""What a train step of a configuration does, in numbers known before it runs."""

import math

from jaxpipe.config import Config
from jaxpipe.data import Batch
from jaxpipe.engine import Engine
from jaxpipe.metrics import StepWork, peak_flops
from jaxpipe.partition import Partition
from jaxpipe.schedules import Costs, simulate

_BACKWARD = 2  # forwards that a backward takes: a product for each of the two gradients of one


def stage_flops(partition: Partition) -> tuple[int, ...]:
    """FLOPs of each stage's forward on a microbatch."""
    return tuple(
        sum(partition.layers[i].flops for i in partition.stage(stage))
        for stage in range(partition.num_stages)
    )


def stage_costs(flops: tuple[int, ...], *, recomputes: bool) -> Costs:
    """What the ops of stages cost, in FLOPs; a backward that recomputes begins with a forward."""
    half = [each * (1 + recomputes) for each in flops]
    return Costs(F=flops, B=[each * (_BACKWARD + recomputes) for each in flops], I=half, W=flops)


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
    costs = stage_costs(flops, recomputes=pipeline.remat != "none")
    microbatches = schedule.num_microbatches * pipeline.data
    total = (1 + _BACKWARD) * sum(flops) * microbatches
    return StepWork(
        items=trainer.batch_size * config.data.units_per_sample,
        unit=config.data.unit,
        flops=total or None,
        peak=_peak(engine, config),
        bubble=simulate(schedule, costs, engine.lockstep).bubble_fraction,
    )


def _peak(engine: Engine, config: Config) -> float | None:
    """Of all devices of the mesh together; None if one of them is not known."""
    devices, own = engine.mesh.devices.flat, config.metrics.peak_flops
    dtype = config.pipeline.compute_dtype
    peaks = [own or peak_flops(device.device_kind, dtype) for device in devices]
    return math.fsum(peak for peak in peaks if peak) if all(peaks) else None
