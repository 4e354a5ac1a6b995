"""A model on its mesh that takes prompts, and goes on with them: pure functions, compiled once."""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxpipe.compiler_options import CompilerOptions
from jaxpipe.decoding.passes import Pass
from jaxpipe.decoding.stages import Shapes, Stages, build_stages, shapes_of
from jaxpipe.errors import BatchError
from jaxpipe.gather import whole
from jaxpipe.mesh import DATA, axis_size
from jaxpipe.model import PipelineModule
from jaxpipe.partition import Partition
from jaxpipe.sampling import Sampling
from jaxpipe.spec import cast_floats, num_bytes
from jaxpipe.storage import Layout, Placed, send_copies, specs
from jaxpipe.storage.parts import gather_parts

Caches = dict[str, jax.Array]


class Sequences(NamedTuple):
    """Sequences that are under way. What goes into `Decoder.decode` is donated.

    Attributes:
      caches: what layers remember of them, on the devices of these layers.
      tokens: the last of each, int32 `[microbatches, rows]`, which no layer has seen yet.
      starts: its position, int32 `[microbatches, rows]`.
      lengths: of the prompts, int32 `[microbatches, rows]`.
      forgotten: how many tokens came before each prompt, int32 `[microbatches, rows]`.
      width: length of the longest prompt.
      slot: the first one that is free.
    """

    caches: Caches
    tokens: Any
    starts: Any
    lengths: Any
    forgotten: Any
    width: int
    slot: int


class Chosen(NamedTuple):
    """What a call has chosen.

    Attributes:
      tokens: int32 `[sequences, tokens]`.
      logits: float32 `[sequences, tokens, vocabulary]`, from which each was chosen, if wanted.
    """

    tokens: jax.Array
    logits: jax.Array | None


@dataclasses.dataclass(frozen=True, eq=False)
class Decoder:
    """Takes prompts through a pipeline and goes on with them.

    Attributes:
      model: the layers.
      mesh: with the axes of `make_mesh`; sequences are cut over `data`.
      layout: where parameters live.
      partition: which layers make up which stage.
      placement: stage -> rank.
      num_microbatches: groups of sequences, so that ranks have something to do at the same time; as
        many as there are ranks keep all of them busy.
      rows: sequences of a group, on each data rank.
      capacity: slots for tokens of each sequence; see `jaxpipe.cache`.
      in_turn: whether collectives within stages and those between ranks must take turns.
      fill: what buffers hold before they are written. Nothing reads it: NaN shows that.
      compiler_options: for XLA.
    """

    model: PipelineModule
    mesh: Mesh
    layout: Layout
    partition: Partition
    placement: tuple[int, ...]
    num_microbatches: int
    rows: int
    capacity: int
    in_turn: bool = False
    fill: float | None = None
    compiler_options: CompilerOptions | None = None
    _cache: dict[Hashable, Any] = dataclasses.field(default_factory=dict, repr=False)

    @functools.cached_property
    def shapes(self) -> Shapes:
        """Of one token.

        Raises:
          BatchError: a layer reads fields of a batch.
          LayerError: a layer cannot take one token after the other.
        """
        return shapes_of(self.model, self.layout, self.mesh, self.rows, self.capacity)

    @functools.cached_property
    def stages(self) -> Stages:
        """The model's stages, and the buffers for what they remember."""
        return build_stages(self.model, self.shapes, self.partition, self.placement, self.layout)

    @property
    def num_sequences(self) -> int:
        """Of all microbatches and data ranks."""
        return self.num_microbatches * self.rows * axis_size(self.mesh, DATA)

    @property
    def bytes_of_caches(self) -> int:
        """On each device."""
        return self.num_microbatches * num_bytes(self.stages.buffers)

    # Functions that run on the mesh.

    def weights(self, params: Placed) -> Caches:
        """Parameters as passes read them: in the dtype of the computation, whole, ties included.

        They take as much memory again as the parameters, in that dtype; these may be let go then.
        """

        def run(params: Placed) -> Caches:
            rows = {
                name: x.reshape(self.layout.row_shape(name)) for name, x in params.buffers.items()
            }
            rows = cast_floats(send_copies(self.layout, rows), self.model.compute_dtype)
            return self._spread(gather_parts(self.layout, rows) if self.layout.is_cut else rows)

        make = lambda: self._on_mesh(run, (specs(self.layout),), self._everywhere)
        return self._once("weights", lambda: jax.jit(make()))(params)

    def caches(self) -> Caches:
        """Caches that remember nothing, on every device those of its layers."""
        shape = lambda s: (*self.mesh.devices.shape, self.num_microbatches, *s.shape)
        empty = lambda: {n: jnp.zeros(shape(s), s.dtype) for n, s in self.stages.buffers.items()}
        make = lambda: jax.jit(empty, out_shardings=NamedSharding(self.mesh, self._everywhere))
        return self._once("caches", make)()

    def prefill(
        self,
        weights: Caches,
        prompts: np.ndarray,
        lengths: np.ndarray,
        sampling: Sampling,
        *,
        forgotten: np.ndarray | None = None,
        pieces: int = 1,
        caches: Caches | None = None,
        gives_logits: bool = False,
    ) -> tuple[Sequences, Chosen]:
        """Takes prompts in, and chooses a token after each.

        Args:
          weights: from `weights`.
          prompts: int32 `[num_sequences, time]`, each from the left; what is behind it is not read.
          lengths: of the prompts, int32 `[num_sequences]`, each at least 1.
          sampling: how tokens are chosen.
          forgotten: how many tokens came before each prompt that it does not have, int32
            `[num_sequences]`, so that what is drawn later is not drawn as it was for these.
          pieces: into how many pieces prompts are cut along time, which they divide, so that ranks
            work on several at once.
          caches: of sequences that have ended, to be used again; they are donated.
          gives_logits: whether the logits are wanted.

        Raises:
          BatchError: there are more tokens than slots or positions, or shapes do not fit.
        """
        self._check_prompts(prompts, lengths, pieces)
        caches = self.caches() if caches is None else caches
        longest, time = int(lengths.max()), prompts.shape[1]
        shape = (self.num_microbatches, -1)
        lengths = np.asarray(lengths, np.int32).reshape(shape)
        tokens = np.asarray(prompts, np.int32).reshape(*shape, time)
        none = np.zeros_like(lengths)
        forgotten = none if forgotten is None else np.asarray(forgotten, np.int32).reshape(shape)
        # Nothing follows prompts yet: what stands behind the longest is none of theirs either.
        before = Sequences(caches, tokens, none, lengths, forgotten, time, 0)
        plan = self._pass(1, pieces, time // pieces, gives_logits)
        caches, chosen, logits = self._run(plan, weights, before, sampling)
        after = before._replace(
            caches=caches, tokens=chosen[:, -1], starts=lengths, width=longest, slot=longest
        )
        return after, self._chosen(chosen, logits)

    def decode(
        self,
        weights: Caches,
        sequences: Sequences,
        sampling: Sampling,
        *,
        num_tokens: int = 1,
        gives_logits: bool = False,
    ) -> tuple[Sequences, Chosen]:
        """Goes on by some tokens. One program for any number of calls.

        Args:
          weights: from `weights`.
          sequences: they are donated. Their last tokens may be replaced by others.
          sampling: how tokens are chosen.
          num_tokens: how many, one after the other.
          gives_logits: whether the logits are wanted.

        Raises:
          BatchError: there are no slots left.
        """
        if sequences.slot + num_tokens > self.capacity:
            raise BatchError(
                f"{num_tokens} tokens more take the sequences to slot"
                f" {sequences.slot + num_tokens}, and the caches have {self.capacity}. Ask for a"
                " decoder with more capacity."
            )
        plan = self._pass(num_tokens, 1, 1, gives_logits)
        before = sequences._replace(tokens=sequences.tokens[..., None])
        caches, chosen, logits = self._run(plan, weights, before, sampling)
        after = sequences._replace(
            caches=caches,
            tokens=chosen[:, -1],
            starts=sequences.starts + np.int32(num_tokens),
            slot=sequences.slot + num_tokens,
        )
        return after, self._chosen(chosen, logits)

    def compiled(self, weights: Caches, sequences: Sequences, num_tokens: int) -> Any:
        """The compiled program of `decode`, for its text and memory analysis."""
        plan = self._pass(num_tokens, 1, 1, False)
        before = sequences._replace(tokens=sequences.tokens[..., None])
        return self._program(plan).lower(*self._arguments(weights, before, Sampling())).compile()

    def _check_prompts(self, prompts: np.ndarray, lengths: np.ndarray, pieces: int) -> None:
        count, time = self.num_sequences, np.shape(prompts)[1] if np.ndim(prompts) == 2 else 0
        if np.shape(prompts) != (count, time) or np.shape(lengths) != (count,):
            raise BatchError(
                f"got prompts {np.shape(prompts)} and lengths {np.shape(lengths)}; expected"
                f" [{count}, time] and [{count}], the sequences of this decoder."
            )
        if time % pieces or not 1 <= int(np.min(lengths)) <= int(np.max(lengths)) <= time:
            raise BatchError(
                f"got prompts of {np.min(lengths)} to {np.max(lengths)} tokens, {time} with what is"
                f" behind them, in {pieces} pieces; expected at least 1, no more than there are,"
                " and pieces that divide them."
            )
        if time > self.capacity:
            raise BatchError(
                f"prompts of {time} tokens do not fit the {self.capacity} slots of the caches. Ask"
                " for a decoder with more capacity."
            )

    def _pass(self, num_tokens: int, pieces: int, piece: int, gives_logits: bool) -> Pass:
        return self._once(
            ("pass", num_tokens, pieces, piece, gives_logits),
            lambda: Pass(
                self.model, self.shapes, self.stages, self.partition, self.placement,
                self.num_microbatches, self.rows, self.capacity, num_tokens, pieces, piece,
                gives_logits, self.fill, self.in_turn,
            ),
        )  # fmt: skip

    def _run(
        self, plan: Pass, weights: Caches, before: Sequences, sampling: Sampling
    ) -> tuple[Caches, jax.Array, jax.Array | None]:
        found = self._program(plan)(*self._arguments(weights, before, sampling))
        return found["caches"], found["tokens"], found.get("logits")

    def _arguments(self, weights: Caches, before: Sequences, sampling: Sampling) -> Any:
        sequences = np.arange(self.num_sequences, dtype=np.int32)
        rows = dict(
            tokens=before.tokens, starts=before.starts, lengths=before.lengths,
            forgotten=before.forgotten, sequences=sequences.reshape(self.num_microbatches, -1),
        )  # fmt: skip
        rows = jax.device_put(rows, NamedSharding(self.mesh, self._by_row))
        scalars = dict(slot=np.int32(before.slot), width=np.int32(before.width))
        return before.caches, weights, rows, scalars | dict(how=sampling.arrays)

    def _program(self, plan: Pass) -> Any:
        def run(caches: Caches, weights: Caches, rows: Any, scalars: Any) -> Any:
            bare = lambda x: x.reshape(x.shape[self.mesh.devices.ndim :])
            weights, caches = jax.tree.map(bare, (weights, caches))
            found = plan.run(weights, caches, dict(rows) | dict(scalars))
            return found | dict(caches=self._spread(found["caches"]))

        def make() -> Any:
            chosen = PartitionSpec(None, None, *self._by_row[1:])
            out = dict(caches=self._everywhere, tokens=chosen)
            out |= dict(logits=chosen) if plan.gives_logits else {}
            ins = (self._everywhere, self._everywhere, self._by_row, PartitionSpec())
            mapped = self._on_mesh(run, ins, out)
            return jax.jit(mapped, donate_argnums=0, compiler_options=self.compiler_options)

        return self._once(("program", id(plan)), make)

    def _chosen(self, tokens: jax.Array, logits: jax.Array | None) -> Chosen:
        """`[microbatches, tokens, rows, ...]` as `[sequences, tokens, ...]`."""
        flat = lambda x: (
            whole(x).swapaxes(1, 2).reshape(self.num_sequences, *x.shape[1:2], *x.shape[3:])
        )
        return Chosen(flat(tokens), None if logits is None else flat(logits))

    @property
    def _everywhere(self) -> PartitionSpec:
        """Of arrays of which every device has its own: a dim for each axis of the mesh."""
        return PartitionSpec(*self.mesh.axis_names)

    @property
    def _by_row(self) -> PartitionSpec:
        """Of arrays `[microbatches, rows, ...]`."""
        return PartitionSpec(None, *((DATA,) if DATA in self.mesh.axis_names else ()))

    def _spread(self, arrays: Mapping[str, jax.Array]) -> Caches:
        """A device's own arrays with a dim for each axis of the mesh."""
        ones = (1,) * self.mesh.devices.ndim
        return {name: x.reshape(*ones, *x.shape) for name, x in arrays.items()}

    def _on_mesh(self, fn: Callable[..., Any], in_specs: Any, out_specs: Any) -> Any:
        return jax.shard_map(
            fn, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )

    def _once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]
