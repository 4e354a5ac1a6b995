"""A multilayer perceptron: one layer for each weight matrix, so that the layers' shapes differ."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxpipe.errors import ConfigError, nearest
from jaxpipe.layers import LayerSpec

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": jax.nn.gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}


class Dense(nn.Module):
    """`activation(x @ kernel + bias)`.

    Attributes:
      features: how many numbers come out.
      activation: one of "gelu", "relu", "silu", "tanh", or None to leave them as they are.
    """

    features: int
    activation: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, any]` to `[batch, features]`."""
        y = nn.Dense(self.features, name="linear")(x)
        return y if self.activation is None else _ACTIVATIONS[self.activation](y)


def mlp(widths: Sequence[int], activation: str = "gelu") -> list[LayerSpec]:
    """One dense layer for each of `widths`; the last is linear.

    Args:
      widths: how many numbers each layer gives. What the first one takes, the batch says.
      activation: one of "gelu", "relu", "silu", "tanh".

    Raises:
      ConfigError: there are no widths, one is not positive, or the activation is unknown.

    >>> mlp([32, 10])
    [LayerSpec(Dense, 32, 'gelu'), LayerSpec(Dense, 10)]
    """
    if not widths or min(widths) < 1:
        raise ConfigError(f"Got widths={list(widths)}: expected at least one, all at least 1.")
    if activation not in _ACTIVATIONS:
        raise ConfigError(f"Unknown activation {activation!r}; {nearest(activation, _ACTIVATIONS)}")
    hidden = [LayerSpec(Dense, width, activation) for width in widths[:-1]]
    return [*hidden, LayerSpec(Dense, widths[-1])]
