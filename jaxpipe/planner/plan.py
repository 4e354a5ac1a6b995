"""A run on paper: what each device would hold, and how long a step would take."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

from jaxpipe.build import build_engine
from jaxpipe.config import Config, validate
from jaxpipe.engine import Engine
from jaxpipe.executor.lower import lower
from jaxpipe.memory import StepMemory
from jaxpipe.partition import Partition
from jaxpipe.planner.chips import Devices, parse_devices
from jaxpipe.planner.described import described_mesh
from jaxpipe.planner.sizes import abstract_batch, with_classes
from jaxpipe.planner.speed import Assumptions, Speed, speed_of
from jaxpipe.schedules import AUTO, Schedule, by_name
from jaxpipe.zero import Zero


class Count(NamedTuple):
    """What another number of microbatches would do.

    Attributes:
      microbatches: how many there are, on each data rank.
      bytes: on each device.
      seconds: of a step.
      fits: whether that is within memory.
    """

    microbatches: int
    bytes: float
    seconds: float
    fits: bool


class Alternative(NamedTuple):
    """A configuration that fits, and what it changes.

    Attributes:
      changes: {field: value}.
      bytes: on each device.
      seconds: of a step.
    """

    changes: dict[str, Any]
    bytes: float
    seconds: float

    @property
    def options(self) -> str:
        """As options of `jaxpipe train`."""
        return " ".join(_option(*change) for change in self.changes.items())


def _option(field: str, value: Any) -> str:
    """Of a command line.

    >>> _option("pipeline.zero", 1), _option("pipeline.sequence_parallel", False)
    ('--pipeline.zero 1', '--pipeline.no-sequence-parallel')
    """
    component, name = field.replace("_", "-").split(".")
    if isinstance(value, bool):
        return f"--{component}.{'' if value else 'no-'}{name}"
    return f"--{component}.{name} {value}"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run would take. `print(plan)` shows it.

    Attributes:
      config: the run.
      devices: what it is to run on.
      assumed: what data sheets do not say.
      partition: which layers make up which stage.
      schedule: the training schedule.
      memory: bytes on each device.
      speed: seconds of a step.
      counts: other numbers of microbatches.
      alternatives: the nearest configurations that fit, if this one does not.
    """

    config: Config
    devices: Devices
    assumed: Assumptions
    partition: Partition
    schedule: Schedule
    memory: StepMemory
    speed: Speed
    counts: tuple[Count, ...] = ()
    alternatives: tuple[Alternative, ...] = ()

    @property
    def limit(self) -> float:
        """Bytes that a device has for arrays."""
        return self.devices.chip.memory * self.assumed.usable

    @property
    def enough_devices(self) -> bool:
        """Whether there are as many devices as the mesh has."""
        return self.config.pipeline.num_devices <= self.devices.number

    @property
    def fits(self) -> bool:
        """Whether it can run there."""
        return self.enough_devices and self.memory.total <= self.limit

    @property
    def parameters(self) -> int:
        """How many numbers the model learns."""
        return sum(layer.parameters for layer in self.partition.layers)

    @property
    def per_second(self) -> float:
        """Tokens, or samples if the data are arrays (`config.data.unit`), of all devices."""
        items = self.config.trainer.batch_size * self.config.data.units_per_sample
        return items / self.speed.step

    @property
    def utilization(self) -> float:
        """Model FLOPs of a step as a share of what the devices could do (MFU, arXiv:2204.02311)."""
        peak = self.devices.chip.peak(self.config.pipeline.compute_dtype)
        return self.speed.useful / (self.speed.step * peak * self.config.pipeline.num_devices)

    def __str__(self) -> str:
        from jaxpipe.planner.show import text_of  # which knows plans

        return text_of(self)


def estimate(config: Config, devices: Devices, assumed: Assumptions) -> Plan:
    """What a configuration takes on devices that are only described; nothing is allocated.

    Raises:
      JaxpipeError: it cannot run anywhere.
    """
    config, pipeline = with_classes(validate(config)), config.pipeline
    mesh = described_mesh(devices.chip, pipeline.ranks, pipeline.data, pipeline.tensor)
    engine, batch = build_engine(config, mesh), abstract_batch(config)
    memory = engine.memory(batch)
    zero = Zero(pipeline.zero, per=pipeline.zero_per)
    speed = speed_of(engine, batch, memory, devices.chip, pipeline.compute_dtype, zero, assumed)
    partition = engine.partition(batch)
    plan = Plan(config, devices, assumed, partition, engine.schedule, memory, speed)
    counts = _counts(plan, engine, batch)
    return dataclasses.replace(plan, counts=tuple(counts))


def _counts(plan: Plan, engine: Engine, batch: Any) -> Iterator[Count]:
    """Other numbers of microbatches, a power of two away, by what this one takes.

    Whatever belongs to a microbatch grows with its rows; how many are held, a table says.
    """
    pipeline, now = plan.config.pipeline, plan.schedule.num_microbatches
    if pipeline.schedule == AUTO:
        return
    rows = plan.config.trainer.batch_size // pipeline.data
    stages, program = engine.stages(batch), engine.program(batch)
    for power in range(-3, 4):
        count = int(now * 2.0**power)
        if count < 1 or rows % count or (power < 0 and now % 2**-power):
            continue
        table = by_name(pipeline.schedule, pipeline.ranks, count, num_chunks=pipeline.chunks)
        other = lower(
            table, stages.codes, stages.first_layers, fuse=engine.lockstep.fuse,
            always=engine.lockstep.steady and table.latency > 0,
        )  # fmt: skip
        larger, memory = now / count, plan.memory
        held = (other.num_rows + other.num_left) / (program.num_rows + program.num_left or 1)
        boxes = (other.num_mail + 3) / (program.num_mail + 3)
        loop = memory.residuals * held + memory.mail * boxes + memory.work
        loop = loop * larger + memory.weights + memory.gradients
        total = memory.state + memory.batch + max(loop, memory.update)
        seconds = plan.speed.with_schedule(table, larger, engine.lockstep)
        yield Count(count, total, seconds, total <= plan.limit)


def plan(
    config: Config,
    devices: str | Devices,
    *,
    assumed: Assumptions | None = None,
    alternatives: int = 3,
) -> Plan:
    """Says whether a run fits, how long a step takes, and what would fit if it does not.

    No device is needed, and no array is made; of data only the first image is read, where the
    network is one of images.

    Args:
      config: the run.
      devices: such as "64xH100"; `planner.CHIPS` has the names.
      assumed: what data sheets do not say.
      alternatives: how many configurations to look for where this one does not fit.

    Raises:
      JaxpipeError: the configuration can run nowhere, or the devices are not known.
    """
    from jaxpipe.planner.nearby import nearby  # which makes plans

    devices = parse_devices(devices) if isinstance(devices, str) else devices
    found = estimate(config, devices, assumed or Assumptions())
    if found.fits or not alternatives:
        return found
    return dataclasses.replace(found, alternatives=tuple(nearby(found, alternatives)))
