"""Norms over the features of each token, which every rank has all of."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxpipe import tensor
from jaxpipe.nn.cut import is_cut
from jaxpipe.nn.recompute import recomputed


class LayerNorm(nn.Module):
    """Each row to mean 0 and variance 1 (arXiv:1607.06450), then scaled and shifted.

    Attributes:
      epsilon: added to the variance.
      sequence_parallel: whether activations come cut along time.
    """

    epsilon: float = 1e-6
    sequence_parallel: bool = False

    @property
    def takes_cut(self) -> bool:
        """Whether its input comes cut over the `tensor` axis, where that has several ranks."""
        return self.sequence_parallel

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., width]` to the same, computed in float32."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        if is_cut(self.sequence_parallel):
            scale, bias = tensor.fan_out(scale), tensor.fan_out(bias)
        return _layer_norm(x, scale, bias, self.epsilon)


class RMSNorm(nn.Module):
    """Each row to a mean square of 1 (arXiv:1910.07467), then scaled.

    Attributes:
      epsilon: added to the mean square.
      sequence_parallel: whether activations come cut along time.
    """

    epsilon: float = 1e-6
    sequence_parallel: bool = False

    @property
    def takes_cut(self) -> bool:
        """Whether its input comes cut over the `tensor` axis, where that has several ranks."""
        return self.sequence_parallel

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., width]` to the same, computed in float32."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        if is_cut(self.sequence_parallel):
            scale = tensor.fan_out(scale)
        return _rms_norm(x, scale, self.epsilon)


@functools.partial(recomputed, static_argnums=3)
def _layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    centred = x.astype(jnp.float32)
    centred -= jnp.mean(centred, axis=-1, keepdims=True)
    variance = jnp.mean(centred**2, axis=-1, keepdims=True)
    return (centred * lax.rsqrt(variance + epsilon)).astype(x.dtype) * scale + bias


@functools.partial(recomputed, static_argnums=2)
def _rms_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    wide = x.astype(jnp.float32)
    mean_square = jnp.mean(wide**2, axis=-1, keepdims=True)
    return (wide * lax.rsqrt(mean_square + epsilon)).astype(x.dtype) * scale
