"""What the branches of a program do: the ops of a stage, between mail, stash and accumulators."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax

from jaxpipe.backward import Gradients, StageCode, StagePlan
from jaxpipe.executor.packing import Packing
from jaxpipe.executor.run import AHEAD, BACK, Action, Carry, Cells
from jaxpipe.executor.weights import Weights
from jaxpipe.storage import Home

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Station:
    """A stage at its place: what it computes, and where its rank keeps its weights.

    Attributes:
      plan: its functions and shapes.
      homes: the home of each weight.
      code: F and B, traced; None where only the forward runs.
    """

    plan: StagePlan
    homes: tuple[Home, ...]
    code: StageCode | None = None


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """What every action sees and none changes.

    Attributes:
      weights: this device's weights.
      context: the microbatch's slice of the batch, its key, the stage's first layer.
      payload: how values travel.
      stash: how residuals are kept.
      left: how what I leaves for W is kept.
    """

    weights: Weights
    context: Callable[[Cells], dict[str, Any]]
    payload: Packing
    stash: Packing
    left: Packing

    def receive(self, station: Station, cells: Cells, carry: Carry) -> PyTree:
        """A stage's input out of the mail; nothing on the first stage."""
        if station.plan.is_first:
            return None
        specs, tree = jax.tree.flatten(station.plan.x)
        return jax.tree.unflatten(tree, self.payload.read(carry["mail"], specs, cells["read"]))

    def gradient(self, station: Station, cells: Cells, carry: Carry) -> list[jax.Array]:
        """The gradients of a stage's output out of the mail; nothing on the last stage."""
        return self.payload.read(carry["mail"], station.plan.dy, cells["read"])

    def recall(
        self, station: Station, cells: Cells, carry: Carry
    ) -> tuple[list[jax.Array], list[jax.Array], dict[str, Any]]:
        """A stage's weights, what its F kept of the microbatch, and the microbatch's context."""
        kept = self.stash.read(carry["stash"], _code(station).kept, cells["row"])
        return self.weights_of(station, cells), kept, self.context(cells)

    def weights_of(self, station: Station, cells: Cells) -> list[jax.Array]:
        """A stage's weights."""
        return self.weights.read(station.homes, station.plan.weights, cells.tick)


def payload_packing(stations: Sequence[Station], *, backward: bool) -> Packing:
    """Fits every activation between stages and, for training, every gradient of one."""
    plans = [s.plan for s in stations]
    activations = [jax.tree.leaves(plan.y) for plan in plans if not plan.is_last]
    return Packing.of([*activations, *((plan.dy for plan in plans) if backward else [])])


def stash_packing(stations: Sequence[Station]) -> Packing:
    """Fits what any of these stages keeps of a microbatch."""
    return Packing.of([_code(s).kept for s in stations])


def left_packing(stations: Sequence[Station]) -> Packing:
    """Fits what I of any of these stages leaves for W."""
    return Packing.of([_code(s).left for s in stations])


def forward(station: Station, around: Surroundings) -> Action:
    """F: reads its input from the mail, fills a row of the stash and the payload."""
    code = _code(station)

    def run(cells: Cells, carry: Carry) -> Carry:
        x = around.receive(station, cells, carry)
        y, kept = code.forward(around.weights_of(station, cells), x, around.context(cells))
        out = dict(stash=around.stash.write(carry["stash"], kept, cells["row"]))
        if not station.plan.is_last:
            out[AHEAD] = around.payload.write(carry[AHEAD], jax.tree.leaves(y))
        return out

    if station.plan.is_last:
        return Action(run, ("stash",))
    return Action(run, ("stash", AHEAD), sends=AHEAD)


def backward(station: Station, around: Surroundings) -> Action:
    """B: reads the output's gradient and its stash row, adds to the accumulators."""
    code = _code(station)

    def run(cells: Cells, carry: Carry) -> Carry:
        dy = around.gradient(station, cells, carry)
        found = code.backward(*around.recall(station, cells, carry), dy)
        return _spend(station, around, carry, found)

    return _backward_action(station, run, ("grads",))


def input_backward(station: Station, around: Surroundings) -> Action:
    """I: as B, but leaves what the weight gradients need, for W."""
    code = _code(station)

    def run(cells: Cells, carry: Carry) -> Carry:
        dy = around.gradient(station, cells, carry)
        found, left = code.input_backward(*around.recall(station, cells, carry), dy)
        left = around.left.write(carry["left"], left, cells["left"])
        return _spend(station, around, carry, found) | dict(left=left)

    return _backward_action(station, run, ("left",))


def weight_backward(station: Station, around: Surroundings) -> Action:
    """W: adds to the accumulators, from what F kept and I left."""
    code = _code(station)

    def run(cells: Cells, carry: Carry) -> Carry:
        left = around.left.read(carry["left"], code.left, cells["left"])
        found = code.weight_backward(*around.recall(station, cells, carry), left)
        return _spend(station, around, carry, found)

    loss_here = station.plan.is_last and not code.sends_dx
    return Action(run, ("grads", *(("loss",) if loss_here else ())))


def fused(station: Station, around: Surroundings) -> Action:
    """F and B of the last stage at once: residuals stay where they are made, none is kept."""
    code = _code(station)

    def run(cells: Cells, carry: Carry) -> Carry:
        x = around.receive(station, cells, carry)
        weights, context = around.weights_of(station, cells), around.context(cells)
        _, kept = code.forward(weights, x, context)
        return _spend(station, around, carry, code.backward(weights, kept, context, []))

    return _backward_action(station, run, ("grads",))


def _backward_action(
    station: Station, run: Callable[[Cells, Carry], Carry], writes: tuple[str, ...]
) -> Action:
    """An action that makes the input's gradient, where anybody wants it, and the loss."""
    loss = ("loss",) if station.plan.is_last else ()
    if not _code(station).sends_dx:
        return Action(run, (*writes, *loss))
    return Action(run, (*writes, *loss, BACK), sends=BACK)


def _spend(station: Station, around: Surroundings, carry: Carry, found: Gradients) -> Carry:
    """Adds weight gradients and loss to the accumulators, and sends the input's gradient on."""
    out: Carry = {}
    if found.weights:
        homes = [station.homes[i] for i, _ in found.weights]
        gradients = [gradient for _, gradient in found.weights]
        out["grads"] = around.weights.add(carry["grads"], homes, gradients)
    if found.loss is not None:
        out["loss"] = jax.tree.map(lax.add, carry["loss"], found.loss)
    if found.x:
        out[BACK] = around.payload.write(carry[BACK], found.x)
    return out


def evaluate(station: Station, around: Surroundings, *, outputs: bool) -> Action:
    """F of a forward-only schedule: on the last stage the loss and metrics, or the outputs."""
    plan = station.plan
    writes = AHEAD if not plan.is_last else "outputs" if outputs else "loss"

    def run(cells: Cells, carry: Carry) -> Carry:
        x = around.receive(station, cells, carry)
        context = around.context(cells)
        y = plan.evaluate(around.weights_of(station, cells), x, context)
        if plan.metrics is None:
            return {AHEAD: around.payload.write(carry[AHEAD], jax.tree.leaves(y))}
        if not outputs:
            return dict(loss=jax.tree.map(lax.add, carry["loss"], plan.metrics(y, context)))
        put = lambda buffer, leaf: lax.dynamic_update_index_in_dim(
            buffer, leaf.astype(buffer.dtype), cells["microbatch"], 0
        )
        return dict(outputs=jax.tree.map(put, carry["outputs"], y))

    return Action(run, (writes,), sends=None if plan.is_last else AHEAD)


def _code(station: Station) -> StageCode:
    if station.code is None:
        raise TypeError("a station without code can only be evaluated")
    return station.code
