"""Lists of unlike arrays in buffers of one shape, so that every rank runs the same program."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxpipe.storage import BufferSpec, Home, Piece, share

Spec = Any
Buffers = list[jax.Array]
_Key = tuple[tuple[tuple[int, ...], Any], ...]  # shape and dtype of each array of a list


@dataclasses.dataclass(frozen=True, eq=False)
class Packing:
    """Buffers that hold any of several lists of arrays, one list at a time and slot.

    What lists have in common has buffers of its own, the rest is laid end to end: see
    `jaxpipe.storage.sharing`.

    Attributes:
      buffers: {name: shape and dtype of one slot}.
      homes: for each list, by its shapes and dtypes, where its arrays go.
    """

    buffers: Mapping[str, BufferSpec]
    homes: Mapping[_Key, Sequence[Home]]

    @classmethod
    def of(cls, variants: Sequence[Sequence[Spec]]) -> "Packing":
        """The packing that holds each of `variants` (lists of abstract arrays)."""
        keys = list(dict.fromkeys([(), *map(_key, variants)]))  # nothing fits anywhere
        homes, buffers = share([[Piece(*pair) for pair in key] for key in keys])
        return cls(buffers, dict(zip(keys, homes, strict=True)))

    @property
    def bytes(self) -> int:
        """Bytes of one slot."""
        return sum(buffer.bytes for buffer in self.buffers.values())

    def empty(self, num_slots: int | None, fill: float | None) -> Buffers:
        """Buffers of `num_slots` slots, or without a slot dim for None.

        Floats hold `fill`; for None whatever the memory held.
        """
        lead = () if num_slots is None else (num_slots,)
        pairs = [((*lead, *b.shape), b.dtype) for b in self.buffers.values()]
        if fill is None:
            return [lax.empty(shape, dtype) for shape, dtype in pairs]
        value = lambda dtype: fill if jnp.issubdtype(dtype, jnp.floating) else 0
        return [jnp.full(shape, value(dtype), dtype) for shape, dtype in pairs]

    def write(
        self, buffers: Buffers, leaves: Sequence[jax.Array], slot: jax.Array | None = None
    ) -> Buffers:
        """The buffers with `leaves` in `slot`, a uint32 (or in the buffers themselves)."""
        out = dict(zip(self.buffers, buffers, strict=True))
        for leaf, (name, offset) in zip(leaves, self.homes[_key(leaves)], strict=True):
            spec = self.buffers[name]
            whole = leaf.size == math.prod(spec.shape)
            if whole and slot is None:
                out[name] = leaf.reshape(spec.shape)
                continue
            lead = () if slot is None else (slot,)
            block = leaf.reshape((1,) * len(lead) + (spec.shape if whole else (-1,)))
            start = (0,) * len(spec.shape) if whole else (offset,)
            out[name] = lax.dynamic_update_slice(out[name], block, (*lead, *_unsigned(start)))
        return list(out.values())

    def read(
        self, buffers: Buffers, specs: Sequence[Spec], slot: jax.Array | None = None
    ) -> list[jax.Array]:
        """Leaves of these shapes and dtypes out of `slot`, a uint32."""
        named = dict(zip(self.buffers, buffers, strict=True))
        lead = () if slot is None else (slot,)
        out = []
        for spec, (name, offset) in zip(specs, self.homes[_key(specs)], strict=True):
            shape, size = self.buffers[name].shape, math.prod(spec.shape)
            block = named[name]
            if size < math.prod(shape):
                start = (*lead, *_unsigned((offset,)))
                block = lax.dynamic_slice(block, start, (1,) * len(lead) + (size,))
            elif lead:
                start = (*lead, *_unsigned((0,) * len(shape)))
                block = lax.dynamic_slice(block, start, (1, *shape))
            out.append(block.reshape(spec.shape))
        return out


def _unsigned(start: Sequence[int]) -> list[np.uint32]:
    """The dtype of slots."""
    return list(map(np.uint32, start))


def _key(leaves: Sequence[Spec]) -> _Key:
    return tuple((tuple(leaf.shape), jnp.dtype(leaf.dtype)) for leaf in leaves)
