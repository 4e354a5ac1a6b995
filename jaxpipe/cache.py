"""What layers remember of earlier positions, so that a token is computed once, when it comes.

A layer whose output at one position depends on others says what it has to remember, with a method
`init_cache`, and takes a `Cache` when tokens come one after the other. Each device holds the
arrays of the layers that it runs, for all sequences that are under way; a layer sees those of the
microbatch at hand. They are only ever written where something new comes, so that XLA updates them
in place.
"""

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxpipe.errors import LayerError

_decoding = contextvars.ContextVar("_decoding", default=False)
CacheSpecs = Mapping[str, Any]  # {name: jax.ShapeDtypeStruct [rows, ...]}


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["arrays", "positions", "microbatch", "slot", "lengths", "width"],
    meta_fields=["capacity"],
)
@dataclasses.dataclass(frozen=True)
class Cache:
    """A layer's own arrays, with what it may have to know of the tokens that it gets.

    Every token of a microbatch takes a slot, and a slot is the same for all of its sequences: the
    prompts take the first `width`, and what is generated those after. So shorter prompts leave
    slots in between that nobody sees, and a sequence's positions are not its slots.

    Attributes:
      arrays: {name: `[microbatches, rows, ...]`}, as `init_cache` declared them, of all
        microbatches; read them as `cache[name]`.
      positions: of the tokens at hand, int32 `[rows, time]`; they count from 0 in each sequence.
      microbatch: uint32 scalar, which one is at hand.
      slot: int32 scalar, of the first token at hand; the others follow.
      lengths: of the prompts, int32 `[rows]`.
      width: int32 scalar, slots that prompts take: the length of the longest, or more while prompts
        come in.
      capacity: how many slots there are.
    """

    arrays: Mapping[str, jax.Array]
    positions: jax.Array
    microbatch: jax.Array
    slot: jax.Array
    lengths: jax.Array
    width: jax.Array
    capacity: int

    def __getitem__(self, name: str) -> jax.Array:
        """The array of the microbatch at hand, `[rows, ...]`."""
        return lax.dynamic_index_in_dim(self.arrays[name], self.microbatch, 0, keepdims=False)

    @property
    def visible(self) -> jax.Array:
        """Which slots each token at hand sees: bool `[rows, time, capacity]`, itself included."""
        slots = jnp.arange(self.capacity)
        now = self.slot + jnp.arange(self.positions.shape[1])
        written = (slots < self.lengths[:, None]) | (slots >= self.width)
        return written[:, None, :] & (slots <= now[:, None])

    @property
    def present(self) -> jax.Array:
        """Which tokens at hand belong to their sequences: bool `[rows, time]`.

        The others stand behind a prompt that is shorter than the longest. Attention need not ask:
        nobody sees them; but what adds up must leave them out.
        """
        slots = self.slot + jnp.arange(self.positions.shape[1])
        return (slots < self.lengths[:, None]) | (slots >= self.width)

    def append(self, name: str, x: jax.Array, dim: int) -> "Cache":
        """The cache with the tokens at hand in their slots.

        Args:
          name: of the array.
          x: what is new, `[rows, ...]`, of as many slots as there are tokens.
          dim: which dim counts slots, from 0, the rows'.
        """
        whole = self.arrays[name]
        start: list[Any] = [jnp.uint32(0)] * whole.ndim
        start[0], start[dim + 1] = self.microbatch, self.slot.astype(jnp.uint32)
        new = lax.dynamic_update_slice(whole, x.astype(whole.dtype)[None], start)
        return self._with(name, new)

    def replace(self, name: str, x: jax.Array) -> "Cache":
        """The cache with another array, `[rows, ...]`, of the microbatch at hand."""
        whole = self.arrays[name]
        new = lax.dynamic_update_index_in_dim(whole, x.astype(whole.dtype), self.microbatch, 0)
        return self._with(name, new)

    def _with(self, name: str, array: jax.Array) -> "Cache":
        return dataclasses.replace(self, arrays=dict(self.arrays) | {name: array})


@contextlib.contextmanager
def decoding() -> Iterator[None]:
    """Within, tokens follow others that a layer does not get."""
    token = _decoding.set(True)
    try:
        yield
    finally:
        _decoding.reset(token)


def refuse_decoding(what: str) -> None:
    """Raises `LayerError` where `what`, which mixes positions, is asked for some without a cache.

    For parts of layers: a layer that has one of them and no `init_cache` would be wrong in silence.
    """
    if _decoding.get():
        raise LayerError(
            f"{what} needs what came before, and got no cache. The layer that it is a part of must"
            " have a method init_cache, and hand its cache on; see jaxpipe.cache."
        )
