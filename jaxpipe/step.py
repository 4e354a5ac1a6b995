"""One pass over a batch inside `shard_map`: the loop, and the reductions that follow it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxpipe.backward import SCALE
from jaxpipe.executor.actions import (
    Station,
    Surroundings,
    backward,
    evaluate,
    forward,
    fused,
    input_backward,
    left_packing,
    payload_packing,
    stash_packing,
    weight_backward,
)
from jaxpipe.executor.program import FUSED, B, F, I, Program, W
from jaxpipe.executor.run import Action, Carry, Cells, run_program
from jaxpipe.executor.weights import Weights
from jaxpipe.mesh import DATA, PIPE
from jaxpipe.spec import cast_floats
from jaxpipe.storage import Layout, Rows, collect_gradients, send_copies
from jaxpipe.storage.parts import gather_parts, scatter_sums
from jaxpipe.zero import Zero

PyTree = Any
Sum = tuple[jax.Array, jax.Array]  # and its weight


class Totals(NamedTuple):
    """Of a loss or a metric, over the whole batch.

    Attributes:
      mean: float32 scalar.
      weight: float32 scalar, what the sum was divided by.
    """

    mean: jax.Array
    weight: jax.Array


@dataclasses.dataclass(frozen=True)
class Step:
    """A program with the stages that it runs, ready to be called inside `shard_map`.

    Attributes:
      program: the schedule as integers.
      stations: the stages' codes, in the order of the program's branch codes.
      layout: of the parameters at rest.
      zero: what data ranks share of a rank's state.
      num_microbatches: of each data rank.
      num_data: size of the `data` axis.
      compute_dtype: what the weights are cast to, once a step; None leaves them.
      fill: what buffers hold before anything is written; NaN in tests, anything for None.
      metric_names: what an evaluation tells besides the loss.
      in_turn: whether collectives within actions and those between ranks must take turns.
    """

    program: Program
    stations: Sequence[Station]
    layout: Layout
    zero: Zero
    num_microbatches: int
    num_data: int
    compute_dtype: Any
    fill: float | None = None
    in_turn: bool = False
    metric_names: tuple[str, ...] = ()

    def gradients(
        self,
        rows: Rows,
        batch: Mapping[str, PyTree],
        key: jax.Array,
        *,
        cut: bool,
        scale: jax.Array | None = None,
    ) -> tuple[Totals, dict[str, jax.Array]]:
        """The loss of the batch and its gradients, summed in float32 or wider.

        Args:
          rows: this device's row of each parameter buffer.
          batch: this data rank's part, `[rows, ...]`.
          key: of the step.
          cut: whether each data rank gets its part of the gradients, where rows may be cut.
          scale: float32 scalar, what gradients are scaled by on their way; None where the stages
            were built without.
        """
        moving = self.layout.trainable
        within = moving.cut if self.each_use else dataclasses.replace(moving, is_cut=False)
        wide = lambda dtype: jnp.promote_types(dtype, jnp.float32)
        zeros = {
            name: jnp.zeros(within.row_shape(name), wide(spec.dtype))
            for name, spec in moving.buffers.items()
        }
        carry = self._run(rows, batch, key, dict(grads=zeros), scale)
        grads = carry["grads"]
        if self.num_data > 1 and not within.is_cut:
            cut = cut and moving.num_parts > 1
            grads = scatter_sums(moving, grads) if cut else lax.psum(grads, DATA)
        after = moving.cut if cut else within
        grads = collect_gradients(after, grads)
        totals = self._totals({"loss": carry["loss"]})["loss"]
        down = 1 / (totals.weight if scale is None else totals.weight * scale)
        narrow = {name: moving.buffers[name].dtype for name in grads}
        return totals, {name: (g * down).astype(narrow[name]) for name, g in grads.items()}

    def metrics(self, rows: Rows, batch: Mapping[str, PyTree], key: jax.Array) -> dict[str, Totals]:
        """The loss of the batch and each metric, by a forward-only program."""
        zero = jnp.zeros(())
        sums = dict.fromkeys(("loss", *self.metric_names), (zero, zero))
        return self._totals(self._run(rows, batch, key, dict(loss=sums))["loss"])

    def outputs(
        self, rows: Rows, batch: Mapping[str, PyTree], key: jax.Array, spec: PyTree
    ) -> PyTree:
        """The last layer's outputs `[rows, ...]` for this data rank, on every pipeline rank.

        Args:
          rows: this device's row of each parameter buffer.
          batch: this data rank's part.
          key: unused by layers that do not train.
          spec: abstract outputs of one microbatch.
        """
        count = self.num_microbatches
        empty = jax.tree.map(lambda s: jnp.zeros((count, *s.shape), s.dtype), spec)
        carry = self._run(rows, batch, key, dict(outputs=empty))
        join = lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])
        # Every rank but the last holds zeros.
        return jax.tree.map(lambda x: _psum_any(join(x)), carry["outputs"])

    def _run(
        self,
        rows: Rows,
        batch: Mapping[str, PyTree],
        key: jax.Array,
        carry: Carry,
        scale: jax.Array | None = None,
    ) -> Carry:
        rows = cast_floats(send_copies(self.layout, rows), self.compute_dtype)
        if self.layout.is_cut and not self.each_use:
            rows = gather_parts(self.layout, rows)
        parts = self.layout.num_parts if self.each_use else 1
        weights = Weights(rows, parts if self.layout.is_cut else 1, parts)
        program, training = self.program, "grads" in carry
        payload = payload_packing(self.stations, backward=training)
        stash = stash_packing(self._stations(F) if training else [])
        left = left_packing(self._stations(I))
        around = Surroundings(weights, self._context(batch, key, scale), payload, stash, left)
        carry = dict(loss=(jnp.zeros(()), jnp.zeros(()))) | carry
        carry |= dict(
            stash=stash.empty(program.num_rows, self.fill),
            left=left.empty(program.num_left, self.fill),
        )
        actions = [
            self._action(op, self.stations[code], around, carry) for op, code in program.branches
        ]
        return run_program(program, actions, payload, carry, self.fill, in_turn=self.in_turn)

    @property
    def each_use(self) -> bool:
        """Whether actions gather and scatter what is cut."""
        return self.zero.per == "use" and self.layout.num_parts > 1

    def _stations(self, op: str) -> list[Station]:
        """Those that run an op."""
        return [self.stations[code] for branch, code in self.program.branches if branch == op]

    def _action(self, op: str, station: Station, around: Surroundings, carry: Carry) -> Action:
        if "grads" not in carry:
            return evaluate(station, around, outputs="outputs" in carry)
        makers: dict[str, Callable[..., Action]] = {
            F: forward, B: backward, I: input_backward, W: weight_backward, FUSED: fused
        }  # fmt: skip
        return makers[op](station, around)

    def _context(
        self, batch: Mapping[str, PyTree], key: jax.Array, scale: jax.Array | None
    ) -> Callable[[Cells], dict[str, Any]]:
        """A microbatch's slice of the batch, its key, its stage's first layer, the scale."""
        more = {} if scale is None else {SCALE: scale}
        count = self.num_microbatches
        cut = lambda x: x.reshape(count, x.shape[0] // count, *x.shape[1:])
        pieces = jax.tree.map(cut, dict(batch))
        offset = lax.axis_index(DATA).astype(jnp.uint32) * count if self.num_data > 1 else 0

        def context(cells: Cells) -> dict[str, Any]:
            index = cells["microbatch"]
            take = lambda x: lax.dynamic_index_in_dim(x, index, 0, keepdims=False)
            piece_key = jax.random.fold_in(key, offset + index)
            return (
                dict(batch=jax.tree.map(take, pieces), key=piece_key, layer=cells["layer"]) | more
            )

        return context

    def _totals(self, sums: Mapping[str, Sum]) -> dict[str, Totals]:
        """From this device's sums and weights to those of the whole batch."""
        axes = (PIPE, DATA) if self.num_data > 1 else (PIPE,)
        whole = lax.psum(dict(sums), axes)
        return {name: Totals(total / weight, weight) for name, (total, weight) in whole.items()}


def _psum_any(x: jax.Array) -> jax.Array:
    if x.dtype == jnp.bool_:
        return lax.psum(x.astype(jnp.int8), PIPE).astype(jnp.bool_)
    return lax.psum(x, PIPE)
