"""Where actions find a stage's weights, and leave their gradients.

Both are read and written where they live, in whole rows. Where data ranks hold a part of each row
(ZeRO), and no more is to be whole at a time than one stage's, an action gathers its weights and
scatters its gradients itself, each in one call for each dtype: all data ranks of a pipeline rank
take the same branch, so that they meet.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax import lax

from jaxpipe.storage import Home, Rows, accumulate, in_parts, read
from jaxpipe.storage.parts import all_gather, reduce_scatter, together


@dataclasses.dataclass(frozen=True)
class Weights:
    """This device's weights.

    Attributes:
      rows: its row of each buffer, in the dtype of the computation.
      gathered: of how many parts actions put weights together; 1 where rows are whole.
      scattered: into how many parts actions cut gradients; 1 where accumulators are whole.
    """

    rows: Rows
    gathered: int = 1
    scattered: int = 1

    def read(self, homes: Sequence[Home], specs: Sequence[Any], tick: jax.Array) -> list[jax.Array]:
        """Some weights of these shapes; `tick` keeps it inside the guard that made it."""
        if self.gathered == 1:
            return [read(self.rows, home, s.shape) for home, s in zip(homes, specs, strict=True)]
        sizes = [-(-math.prod(s.shape) // self.gathered) for s in specs]
        pairs = zip(homes, sizes, strict=True)
        parts = [read(self.rows, home, (size,)) for home, size in pairs]
        parts, _ = lax.optimization_barrier((parts, tick))
        found = together(parts, self.gathered, all_gather)
        flat = lambda x, s: lax.slice_in_dim(x.reshape(-1), 0, math.prod(s.shape))
        return [flat(x, s).reshape(s.shape) for x, s in zip(found, specs, strict=True)]

    def add(
        self, grads: Rows, homes: Sequence[Home], gradients: Sequence[jax.Array]
    ) -> dict[str, jax.Array]:
        """The accumulators with some gradients more."""
        out, found = dict(grads), list(gradients)
        if self.scattered > 1:
            wide = [g.astype(out[home.buffer].dtype) for home, g in zip(homes, found, strict=True)]
            matrices = [in_parts(g, self.scattered) for g in wide]
            found = together(matrices, self.scattered, reduce_scatter)
        for home, gradient in zip(homes, found, strict=True):
            accumulate(out, home, gradient)
        return out
