"""What each device holds in a train step, counted before anything is compiled.

State, accumulators, mailboxes and the rows of the stash have the sizes that the engine gives them:
layouts, a program's slots, packings. What an action needs beside them is the most that is alive at
once in its jaxpr. All devices run one program, so each allocates as much as the others. How well
this agrees with what XLA allocates is in docs/plan.md.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxpipe.executor.actions import Station, left_packing, payload_packing, stash_packing
from jaxpipe.executor.program import FUSED, B, F, I, Program
from jaxpipe.liveness import peak_bytes
from jaxpipe.mesh import traced_on
from jaxpipe.optimizer import state_layout
from jaxpipe.spec import cast_floats_spec, num_bytes
from jaxpipe.step import Step
from jaxpipe.storage import Layout

PyTree = Any


@dataclasses.dataclass(frozen=True)
class StepMemory:
    """Bytes on each device.

    Attributes:
      parameters: at rest.
      optimizer: the optimizer's state.
      batch: this device's part of it.
      weights: what a step makes of the parameters before its first tick: in the dtype of the
        computation, or gathered from the data ranks.
      gradients: accumulators.
      residuals: rows for what backwards need of forwards, and W of I.
      mail: mailboxes, outboxes, and what is on its way.
      work: what the largest action needs while it runs.
      update: what is held after the last tick, when `weights` to `work` are gone.
      actions: {(op, number of the stage's code): the `work` of that action}.
    """

    parameters: int
    optimizer: int
    batch: int
    weights: int
    gradients: int
    residuals: int
    mail: int
    work: int
    update: int
    actions: Mapping[tuple[str, int], int]

    @property
    def state(self) -> int:
        """Bytes of what stays from step to step."""
        return self.parameters + self.optimizer

    @property
    def step(self) -> int:
        """Bytes that a step takes beside state and batch."""
        loop = self.weights + self.gradients + self.residuals + self.mail + self.work
        return max(loop, self.update)

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.state + self.batch + self.step


def step_memory(
    step: Step, optimizer: optax.GradientTransformation | None, batch: PyTree, mesh: Mesh
) -> StepMemory:
    """Counts what a device holds.

    Args:
      step: of an engine, to train.
      optimizer: from optax, if there is one.
      batch: abstract, the global one.
      mesh: whose axes the stages may name.
    """
    rest, program = step.layout, step.program
    whole, moving = dataclasses.replace(rest, is_cut=False), rest.trainable
    gradients = _wide(moving.cut if step.each_use else dataclasses.replace(moving, is_cut=False))
    part, shared = _wide(moving.cut), rest.num_parts > 1
    gathered = _bytes(whole.trainable) if shared and not rest.is_cut else 0
    actions = {branch: _work(step, *branch, mesh) for branch in program.branches}
    return StepMemory(
        parameters=_bytes(rest),
        optimizer=0 if optimizer is None else _bytes(state_layout(optimizer, rest)),
        batch=num_bytes(batch) // step.num_data,
        weights=_bytes(
            rest if step.each_use else whole,
            step.compute_dtype,
            also_same=rest.is_cut and not step.each_use,
        ),
        gradients=gradients,
        residuals=_residuals(step.stations, program),
        mail=_mail(step.stations, program),
        work=max(actions.values()),
        update=max(gradients + (part if step.num_data > 1 else 0), part + gathered),
        actions=actions,
    )


def _residuals(stations: Any, program: Program) -> int:
    of = lambda op: [stations[code] for branch, code in program.branches if branch == op]
    stash, left = stash_packing(of(F)), left_packing(of(I))
    return program.num_rows * stash.bytes + program.num_left * left.bytes


def _mail(stations: Any, program: Program) -> int:
    """Mailboxes with the spare one, an outbox for each direction, and what has just arrived."""
    boxes = program.num_mail + 3 + program.latency * program.num_permutes
    return boxes * payload_packing(stations, backward=True).bytes


def _work(step: Step, op: str, number: int, mesh: Mesh) -> int:
    """What an action of a stage holds at once beside what it reads."""
    station = step.stations[number]
    fn, args = _action(station, op, step.each_use)
    gathered = num_bytes(station.plan.weights) if step.each_use and step.layout.is_cut else 0
    return gathered + traced_on(mesh, lambda: peak_bytes(fn, *args))


def _action(station: Station, op: str, each_use: bool) -> tuple[Callable[..., Any], tuple]:
    """`(*args) -> (what stays to its end, what goes at once)` of an op of a stage, and args.

    Accumulators take gradients as they come, but for those that data ranks scatter together.
    """
    plan, code = station.plan, station.code
    if code is None:
        raise TypeError("a station without code does not train")

    def spent(found: Any) -> Any:
        gradients = [gradient for _, gradient in found.weights]
        stays = found.x, found.loss
        return ((stays, gradients), ()) if each_use else (stays, gradients)

    def fused(weights: Any, x: Any, context: Any) -> Any:
        _, kept = code.forward(weights, x, context)
        return spent(code.backward(weights, kept, context, []))

    def first(*args: Any) -> Any:
        found, left = code.input_backward(*args)
        return (found.x, found.loss, left), ()

    before = list(plan.weights), plan.x, plan.context
    after = list(plan.weights), list(code.kept), plan.context
    if op == F:
        return lambda *args: (code.forward(*args), ()), before
    if op == FUSED:
        return fused, before
    if op == B:
        return lambda *args: spent(code.backward(*args)), (*after, plan.dy)
    if op == I:
        return first, (*after, plan.dy)
    return lambda *args: spent(code.weight_backward(*args)), (*after, list(code.left))


def _bytes(layout: Layout, dtype: Any = None, also_same: bool = True) -> int:
    """Of a device's rows in a dtype; or only of those that are not stored in it."""
    total = 0
    for name, spec in layout.buffers.items():
        stored = jax.ShapeDtypeStruct(layout.row_shape(name), spec.dtype)
        used = cast_floats_spec(stored, dtype)
        if also_same or used.dtype != stored.dtype:
            total += num_bytes(used)
    return total


def _wide(layout: Layout) -> int:
    """Of a device's gradients, in float32 or wider."""
    wide = lambda dtype: jnp.promote_types(dtype, jnp.float32).itemsize
    return sum(
        math.prod(layout.row_shape(name)) * wide(spec.dtype)
        for name, spec in layout.buffers.items()
    )
