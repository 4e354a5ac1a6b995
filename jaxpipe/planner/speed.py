"""How long a step takes on chips that are known by their data sheets."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from jaxpipe.backward import StageCode
from jaxpipe.costs import flops
from jaxpipe.engine import Engine
from jaxpipe.executor.actions import payload_packing
from jaxpipe.memory import StepMemory
from jaxpipe.mesh import DATA, PIPE, TENSOR, axis_size
from jaxpipe.planner.chips import Chip
from jaxpipe.planner.traffic import exchanged_bytes
from jaxpipe.schedules import Costs, Lockstep, Op, Schedule, Timeline, simulate
from jaxpipe.zero import Zero


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """What data sheets do not say.

    Attributes:
      efficiency: share of the peak FLOP/s that stages reach while they compute. Llama 3 was trained
        at 38 to 43 % of it with bubbles and communication in the count (arXiv:2407.21783, 3.3.2).
      link_efficiency: share of a link's bandwidth that large messages reach; NCCL's tests show 75
        to 85 % of NVLink's.
      usable: share of the memory that arrays may take. XLA takes 75 % unless
        XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise; contexts and buffers of NCCL need the rest,
        and estimates are off by some per cent.
    """

    efficiency: float = 0.5
    link_efficiency: float = 0.8
    usable: float = 0.9


@dataclasses.dataclass(frozen=True)
class Speed:
    """How long a step takes.

    Attributes:
      timeline: of the schedule, in seconds, without what follows the last tick.
      costs: of ops and hops, in seconds.
      gradients: seconds that data ranks take to put gradients, and parameters, together.
      update: seconds of the optimizer.
      exchange: seconds of a step that the busiest rank's devices exchange parts of layers.
      work: FLOPs of a step on all devices, recomputation too.
      useful: the same without recomputation, as model FLOPs utilization counts them.
    """

    timeline: Timeline
    costs: Costs
    gradients: float
    update: float
    exchange: float
    work: float
    useful: float

    @property
    def step(self) -> float:
        """Seconds of a step."""
        return self.timeline.makespan + self.gradients + self.update

    def with_schedule(self, schedule: Schedule, larger: float, lockstep: Lockstep) -> float:
        """Seconds of a step by another schedule, with microbatches so many times as large."""
        timeline = simulate(schedule, self.costs.scaled(larger), lockstep)
        return timeline.makespan + self.gradients + self.update


def speed_of(
    engine: Engine,
    batch: Mapping[str, Any],
    memory: StepMemory,
    chip: Chip,
    dtype: str,
    zero: Zero,
    assumed: Assumptions,
) -> Speed:
    """Simulates a step: FLOPs of stages, bytes on links.

    Args:
      engine: on a mesh of described devices.
      batch: abstract.
      memory: of the step.
      chip: what the devices are.
      dtype: of the computation.
      zero: what data ranks share.
      assumed: shares of what data sheets promise.
    """
    mesh, stages, schedule = engine.mesh, engine.stages(batch), engine.schedule
    split = any(action.op == Op.I for action in schedule.ticks())
    known = [
        _ops(station.code, split, mesh) for station in stages.stations if station.code is not None
    ]
    rate = chip.peak(dtype) * assumed.efficiency
    over = functools.partial(_bandwidth, mesh, chip, assumed)
    seconds = lambda pair: pair[0] / rate + pair[1] / over(TENSOR)
    by_stage: Any = {op: [seconds(known[c].get(op, (0, 0))) for c in stages.codes] for op in "FBIW"}
    payload = payload_packing(stages.stations, backward=True).bytes
    costs = Costs(**by_stage, hop=payload / over(PIPE))
    ops = [(action.op, stages.codes[action.stage], action.stage) for action in schedule.ticks()]
    work = sum(known[code][op][0] for op, code, _ in ops)
    exchange = [0.0] * schedule.num_ranks
    for op, code, stage in ops:
        exchange[schedule.placement[stage]] += known[code][op][1] / over(TENSOR)
    pipelines = math.prod(mesh.devices.shape) // schedule.num_ranks
    moved = 3 * (memory.parameters + memory.optimizer)  # read, read and written in two passes
    return Speed(
        timeline=simulate(schedule, costs, engine.lockstep),
        costs=costs,
        gradients=_together(memory, axis_size(mesh, DATA), zero, schedule) / over(DATA),
        update=moved / (chip.bandwidth * assumed.link_efficiency),
        exchange=max(exchange),
        work=work * pipelines,
        useful=3 * _forward(engine, batch) * axis_size(mesh, DATA),
    )


def _ops(code: StageCode, split: bool, mesh: Mesh) -> dict[str, tuple[float, float]]:
    """FLOPs, and bytes over `tensor`, of each op of a stage on one device."""
    plan = code.plan
    before = list(plan.weights), plan.x, plan.context
    after = list(plan.weights), list(code.kept), plan.context
    runs: dict[str, tuple[Any, tuple]] = {
        "F": (code.forward, before),
        "B": (code.backward, (*after, plan.dy)),
    }
    if split:
        runs["I"] = code.input_backward, (*after, plan.dy)
        runs["W"] = code.weight_backward, (*after, list(code.left))
    return {
        op: (flops(fn, *args, mesh=mesh), exchanged_bytes(fn, *args, mesh=mesh))
        for op, (fn, args) in runs.items()
    }


def _bandwidth(mesh: Mesh, chip: Chip, assumed: Assumptions, axis: str) -> float:
    """Bytes per second between neighbours on an axis: the slowest pair's."""
    place = list(mesh.axis_names).index(axis)
    grid = mesh.devices.swapaxes(0, place).reshape(mesh.devices.shape[place], -1)
    crosses = any(len({device.process_index for device in line}) > 1 for line in grid.T)
    return (chip.network if crosses else chip.link) * assumed.link_efficiency


def _together(memory: StepMemory, num_data: int, zero: Zero, schedule: Schedule) -> float:
    """Bytes that a device sends over `data`: gradients summed, parameters gathered."""
    share = (num_data - 1) / num_data
    if zero.per == "use" and num_data > 1:  # each action gathers weights; B or W scatters sums
        weights = (memory.weights or memory.parameters) * (num_data if zero.stage == 3 else 0)
        whole = memory.gradients * num_data
        return share * schedule.num_microbatches * (2 * weights + whole)
    # A sum over all, or sums scattered and what is updated gathered.
    return share * 2 * memory.gradients


def _forward(engine: Engine, batch: Mapping[str, Any]) -> float:
    """FLOPs of the forward pass of the batch that goes through one pipeline, all layers."""
    layers = engine.partition(batch).layers
    return sum(layer.flops for layer in layers) * engine.schedule.num_microbatches
