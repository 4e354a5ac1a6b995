"""Dropout that drops the same features however activations are cut."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxpipe import tensor
from jaxpipe.nn.cut import is_cut


class Dropout(nn.Module):
    """In training each feature becomes 0 with a probability, and the rest grow to make up for it.

    Attributes:
      rate: the probability, in [0, 1).
      sequence_parallel: whether activations come cut along time; each rank then draws the mask of
        the whole sequence, and keeps its piece.
    """

    rate: float
    sequence_parallel: bool = False

    @property
    def takes_cut(self) -> bool:
        """Whether its input comes cut over the `tensor` axis, where that has several ranks."""
        return self.sequence_parallel

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """`[..., width]`, or `[batch, time, width]` cut along time, to the same."""
        if not train or self.rate == 0:
            return x
        cut = is_cut(self.sequence_parallel)
        shape = list(x.shape)
        if cut:
            shape[-2] *= tensor.size()
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, tuple(shape))
        keep = tensor.split(keep, -2) if cut else keep
        return jnp.where(keep, x / (1 - self.rate), 0)
