"""Lists of unlike arrays in buffers of one shape, so that every rank runs the same program."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Spec = Any
Buffers = list[jax.Array]


class _Part(NamedTuple):
    """Where one leaf goes: which buffer, and from which element of its last dim."""

    buffer: int
    offset: int


@dataclasses.dataclass(frozen=True, eq=False)
class Packing:
    """Buffers that hold any of several lists of arrays, one list at a time and slot.

    Alike lists (each a prefix of the longest) keep their arrays as they are. Unlike ones are laid
    end to end in one vector per dtype, as long as the longest list needs.

    Attributes:
      shapes: of one slot of each buffer.
      dtypes: of each buffer.
      flat: whether leaves are laid end to end.
    """

    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[Any, ...]
    flat: bool

    @classmethod
    def of(cls, variants: Sequence[Sequence[Spec]], *, flat: bool | None = None) -> "Packing":
        """The packing that holds each of `variants` (lists of abstract arrays)."""
        keys = [[(tuple(s.shape), jnp.dtype(s.dtype)) for s in variant] for variant in variants]
        longest = max(keys, key=len, default=[])
        if flat is None:
            flat = any(key != longest[: len(key)] for key in keys)
        if not flat:
            return cls(tuple(k[0] for k in longest), tuple(k[1] for k in longest), False)
        widths: dict[Any, int] = {}
        for key in keys:
            for dtype in {d for _, d in key}:
                width = sum(math.prod(shape) for shape, d in key if d == dtype)
                widths[dtype] = max(widths.get(dtype, 0), width)
        ordered = sorted(widths, key=str)
        return cls(tuple((widths[d],) for d in ordered), tuple(ordered), True)

    @property
    def bytes(self) -> int:
        """Bytes of one slot."""
        pairs = zip(self.shapes, self.dtypes, strict=True)
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in pairs)

    def empty(self, num_slots: int | None, fill: float | None) -> Buffers:
        """Buffers of `num_slots` slots, or without a slot dim for None.

        Floats hold `fill`; for None whatever the memory held.
        """
        lead = () if num_slots is None else (num_slots,)
        pairs = [((*lead, *s), d) for s, d in zip(self.shapes, self.dtypes, strict=True)]
        if fill is None:
            return [lax.empty(shape, dtype) for shape, dtype in pairs]
        value = lambda dtype: fill if jnp.issubdtype(dtype, jnp.floating) else 0
        return [jnp.full(shape, value(dtype), dtype) for shape, dtype in pairs]

    def write(
        self, buffers: Buffers, leaves: Sequence[jax.Array], slot: jax.Array | None = None
    ) -> Buffers:
        """The buffers with `leaves` in `slot` (or in the buffers themselves)."""
        out = list(buffers)
        lead = () if slot is None else (slot,)
        for leaf, (i, offset) in zip(leaves, self._parts(leaves), strict=True):
            block = leaf.reshape(-1) if self.flat else leaf
            start = (*lead, offset) if self.flat else (*lead, *(0,) * leaf.ndim)
            block = block.reshape((1,) * len(lead) + block.shape)
            out[i] = lax.dynamic_update_slice(out[i], block, start) if start else block
        return out

    def read(
        self, buffers: Buffers, specs: Sequence[Spec], slot: jax.Array | None = None
    ) -> list[jax.Array]:
        """Leaves of these shapes and dtypes out of `slot`."""
        lead = () if slot is None else (slot,)
        out = []
        for spec, (i, offset) in zip(specs, self._parts(specs), strict=True):
            shape = (math.prod(spec.shape),) if self.flat else tuple(spec.shape)
            start = (*lead, offset) if self.flat else (*lead, *(0,) * len(shape))
            block = (
                lax.dynamic_slice(buffers[i], start, (1,) * len(lead) + shape)
                if start
                else buffers[i]
            )
            out.append(block.reshape(spec.shape))
        return out

    def _parts(self, specs: Sequence[Spec]) -> list[_Part]:
        if not self.flat:
            return [_Part(i, 0) for i in range(len(specs))]
        ends = dict.fromkeys(self.dtypes, 0)
        parts = []
        for spec in specs:
            dtype = jnp.dtype(spec.dtype)
            parts.append(_Part(self.dtypes.index(dtype), ends[dtype]))
            ends[dtype] += math.prod(spec.shape)
        return parts
