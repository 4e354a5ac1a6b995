"""One pass of tokens through the stages, inside `shard_map`, by the loop that runs schedules.

Prompts go through in pieces, which follow each other as microbatches do: while one rank works on
the second piece of a prompt, the next has the first (TeraPipe, arXiv:2102.07988, for training).
What is generated goes through one token at a time, and the last stage sends what it has chosen on
to the first.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxpipe import tensor
from jaxpipe.cache import Cache
from jaxpipe.decoding.stages import Shapes, Stage, Stages
from jaxpipe.executor.lower import lower
from jaxpipe.executor.packing import Packing
from jaxpipe.executor.run import AHEAD, Action, Carry, Cells, run_program
from jaxpipe.executor.weights import Weights
from jaxpipe.mesh import PIPE
from jaxpipe.model import PipelineModule
from jaxpipe.partition import Partition
from jaxpipe.sampling import sample
from jaxpipe.schedules import Schedule, decoding, forward_only
from jaxpipe.storage import Rows

PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class Pass:
    """So many tokens of every sequence, through all stages.

    Attributes:
      model: the layers.
      shapes: of one token.
      stages: of the model.
      partition: which layers make up which stage.
      placement: stage -> rank.
      num_microbatches: groups of sequences, of each data rank.
      rows: sequences of a microbatch.
      capacity: slots of the caches.
      num_tokens: tokens that are generated, one after the other.
      pieces: into how many pieces prompts are cut.
      piece: tokens of a piece; 1 where tokens are generated.
      gives_logits: whether the logits of each choice are wanted.
      fill: what buffers hold before anything is written; NaN in tests.
      in_turn: whether collectives within actions and those between ranks must take turns.
    """

    model: PipelineModule
    shapes: Shapes
    stages: Stages
    partition: Partition
    placement: Sequence[int]
    num_microbatches: int
    rows: int
    capacity: int
    num_tokens: int = 1
    pieces: int = 1
    piece: int = 1
    gives_logits: bool = False
    fill: float | None = None
    in_turn: bool = False

    @property
    def schedule(self) -> Schedule:
        """What the ranks do; each piece of a prompt is a microbatch, behind those before it."""
        if self.num_tokens > 1:
            return decoding(self.num_microbatches, self.placement, self.num_tokens)
        num_ranks, count = 1 + max(self.placement), self.num_microbatches * self.pieces
        return forward_only(num_ranks, count, placement=self.placement)

    def run(
        self, weights: Rows, caches: Mapping[str, jax.Array], given: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Caches, tokens and perhaps logits, on every pipeline rank.

        Args:
          weights: this device's row of each buffer, in the dtype of the computation, ties included.
          caches: `[microbatches, rows, ...]` of each buffer.
          given: `tokens`, int32 `[microbatches, rows, tokens]`, those that go in; of what is
            generated the first; `starts`, int32 `[microbatches, rows]`, the position of the first;
            `slot`, int32 scalar, that of the first; `lengths`, `[microbatches, rows]`, and `width`
            of the prompts; `sequences`, `[microbatches, rows]`, which they are, and how many
            tokens of them are `forgotten`; `how` to choose, as `Sampling.arrays`.

        Returns:
          `caches`; `tokens`, int32 `[microbatches, num_tokens, rows]`, what was chosen: after a
          prompt one that follows it; and `logits`, float32 `[..., vocabulary]`, if wanted.
        """
        layers, table = len(self.model.layers), self.schedule
        firsts = [
            token * layers + first
            for token in range(self.num_tokens)
            for first in self.partition.boundaries[:-1]
        ]
        program = lower(table, self.stages.codes * self.num_tokens, firsts)
        payload = self._payload()
        shape = (self.num_microbatches, self.num_tokens, self.rows)
        carry: Carry = dict(caches=dict(caches), tokens=jnp.zeros(shape, jnp.int32))
        if self.gives_logits:
            carry["logits"] = jnp.zeros((*shape, self.shapes.vocab_size), jnp.float32)
        actions = [
            self._action(self.stages.stages[code], Weights(weights), payload, given)
            for _, code in program.branches
        ]
        carry = run_program(program, actions, payload, carry, self.fill, in_turn=self.in_turn)
        # Every rank but the last holds zeros.
        found = {
            name: lax.psum(carry[name], PIPE) for name in ("tokens", "logits") if name in carry
        }
        return found | dict(caches=carry["caches"])

    def _payload(self) -> Packing:
        """What travels: activations, and the tokens that were chosen."""
        values = [jax.tree.leaves(self._input(stage)) for stage in self.stages.stages]
        return Packing.of([*values, [self._chosen]])

    @property
    def _chosen(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self.rows,), jnp.int32)

    def _input(self, stage: Stage) -> PyTree:
        """Abstract input of a stage: `piece` tokens, or one where no layer is left that mixes."""
        time = self.piece if stage.mixing else 1
        widen = lambda x: jax.ShapeDtypeStruct((x.shape[0], time, *x.shape[2:]), x.dtype)
        return self._chosen if stage.is_first else jax.tree.map(widen, stage.x)

    def _action(
        self, stage: Stage, weights: Weights, payload: Packing, given: Mapping[str, Any]
    ) -> Action:
        spec = self._input(stage)
        sends = not stage.is_last or self.num_tokens > 1

        def run(cells: Cells, carry: Carry) -> Carry:
            at = _Place.of(self, cells, given)
            leaves, tree = jax.tree.flatten(spec)
            read = payload.read(carry["mail"], leaves, cells["read"])
            x = jax.tree.unflatten(tree, read)
            if stage.is_first:
                tokens = at.pick(given["tokens"])
                tokens = lax.dynamic_slice_in_dim(tokens, at.offset, self.piece, 1)
                x = tokens if self.num_tokens == 1 else jnp.where(at.token == 0, tokens, x[:, None])
            found = weights.read(stage.homes, stage.weights, cells.tick)
            params = stage.parameters(found, self.stages.trees)
            y, out = self._layers(stage, params, x, at, carry, given)
            if stage.is_last:
                chosen, more = self._choose(y, at, carry, given)
                y, out = chosen, out | more
            if sends:
                out[AHEAD] = payload.write(carry[AHEAD], jax.tree.leaves(y))
            return out

        writes = ["caches"] + ["tokens"] * stage.is_last + [AHEAD] * sends
        writes += ["logits"] * (stage.is_last and self.gives_logits)
        return Action(run, tuple(writes), sends=AHEAD if sends else None)

    def _layers(
        self, stage: Stage, params: Any, x: PyTree, at: "_Place", carry: Carry, given: Any
    ) -> tuple[PyTree, Carry]:
        """The stage's layers; those behind the last that mixes take a prompt's last token alone."""
        buffers, positions = dict(carry["caches"]), at.positions
        lengths = at.pick(given["lengths"])
        for number, (layer, names) in enumerate(zip(stage.layers, stage.caches, strict=True)):
            if number == stage.mixing and self.piece > 1 and _time(x) > 1:
                x, positions = jax.tree.map(at.last, (x, positions))
            own = {name: buffers[buffer] for name, buffer in names.items()}
            cache = Cache(
                own, positions, at.microbatch, at.slot, lengths, given["width"], self.capacity
            )
            x, cache = self.model.decode_layer(layer, params[layer.owner], x, cache)
            buffers |= {buffer: cache.arrays[name] for name, buffer in names.items()}
        if stage.ends_mixing and self.piece > 1:
            x = jax.tree.map(at.last, x)
        return x, dict(caches=buffers)

    def _choose(
        self, logits: jax.Array, at: "_Place", carry: Carry, given: Mapping[str, Any]
    ) -> tuple[jax.Array, Carry]:
        """The next token of each row, `[rows]`; where a prompt does not end here, what was."""
        logits = logits[:, 0].astype(jnp.float32)
        if logits.shape[-1] < self.shapes.vocab_size:
            logits = tensor.join(logits, 1)
        ends = at.ends
        number = at.next_position + at.pick(given["forgotten"])
        chosen = sample(logits, at.pick(given["sequences"]), number, given["how"])
        place = (at.microbatch, at.token, jnp.uint32(0))
        before = lax.dynamic_slice(carry["tokens"], place, (1, 1, self.rows))
        new = jnp.where(ends, chosen, before)
        out: Carry = dict(tokens=lax.dynamic_update_slice(carry["tokens"], new, place))
        if self.gives_logits:
            place = (*place, jnp.uint32(0))
            before = lax.dynamic_slice(carry["logits"], place, (1, 1, *logits.shape))
            new = jnp.where(ends[:, None], logits, before)
            out["logits"] = lax.dynamic_update_slice(carry["logits"], new, place)
        return chosen, out


@dataclasses.dataclass(frozen=True, eq=False)
class _Place:
    """Which tokens of which sequences an action has at hand.

    Attributes:
      microbatch: uint32 scalar.
      token: uint32 scalar, how many were generated before in this pass.
      offset: int32 scalar, tokens of this pass that come before those at hand.
      slot: int32 scalar, that of the first.
      positions: int32 `[rows, piece]`.
      left: int32 `[rows]`, tokens of each prompt from the first at hand on; of what is generated 1.
      piece: how many are at hand.
    """

    microbatch: jax.Array
    token: jax.Array
    offset: jax.Array
    slot: jax.Array
    positions: jax.Array
    left: jax.Array
    piece: int

    @classmethod
    def of(cls, all: Pass, cells: Cells, given: Mapping[str, Any]) -> "_Place":
        """What a cell of the program says."""
        index, layers = cells["microbatch"], len(all.model.layers)
        microbatch, number = index // all.pieces, index % all.pieces
        token = cells["layer"] // jnp.uint32(layers)
        pick = lambda x: lax.dynamic_index_in_dim(x, microbatch, 0, keepdims=False)
        before = (number * all.piece).astype(jnp.int32)
        offset = before + token.astype(jnp.int32)
        positions = pick(given["starts"])[:, None] + offset + jnp.arange(all.piece)
        left = pick(given["lengths"]) - before
        if all.piece * all.pieces == 1:
            left = jnp.ones(all.rows, jnp.int32)
        return cls(microbatch, token, before, given["slot"] + offset, positions, left, all.piece)

    def pick(self, x: jax.Array) -> jax.Array:
        """What an array `[microbatches, ...]` has of the microbatch at hand."""
        return lax.dynamic_index_in_dim(x, self.microbatch, 0, keepdims=False)

    @property
    def ends(self) -> jax.Array:
        """Whether the last token of each prompt is at hand: bool `[rows]`."""
        return (self.left >= 1) & (self.left <= self.piece)

    @property
    def _index(self) -> jax.Array:
        return jnp.clip(self.left - 1, 0, self.piece - 1)

    @property
    def next_position(self) -> jax.Array:
        """Of the tokens that follow, int32 `[rows]`."""
        return jnp.take_along_axis(self.positions, self._index[:, None], 1)[:, 0] + 1

    def last(self, x: jax.Array) -> jax.Array:
        """Of `[rows, piece, ...]` each prompt's last token, `[rows, 1, ...]`."""
        index = self._index.reshape(-1, *(1,) * (x.ndim - 1))
        return jnp.take_along_axis(x, index, 1)


def _time(x: PyTree) -> int:
    return jax.tree.leaves(x)[0].shape[1]
