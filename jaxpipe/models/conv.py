"""A small convolutional net for small images: what passes between its layers changes shape."""

from collections.abc import Sequence

import flax.linen as nn
import jax

from jaxpipe.errors import ConfigError, LayerError
from jaxpipe.layers import LayerSpec


class Conv(nn.Module):
    """A 3 x 3 convolution and ReLU.

    Attributes:
      channels: how many come out.
    """

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, height, width, any]` to `[batch, height, width, channels]`."""
        return jax.nn.relu(nn.Conv(self.channels, (3, 3), name="kernel3x3")(x))


class Pool(nn.Module):
    """The largest of each 2 x 2 patch; what is left over at the edges falls away."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, height, width, channels]` to half the height and width."""
        if min(x.shape[1:3]) < 2:
            raise LayerError(
                f"Got images of {x.shape[1]} x {x.shape[2]}, and pooling needs at least 2 x 2: use "
                "larger images, or fewer of the layers that halve them."
            )
        return nn.max_pool(x, (2, 2), strides=(2, 2))


class Flatten(nn.Module):
    """An image as one row of numbers."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, ...]` to `[batch, features]`."""
        return x.reshape(x.shape[0], -1)


def convnet(num_classes: int = 10, channels: Sequence[int] = (16, 32)) -> list[LayerSpec]:
    """Images `[batch, height, width, colours]` to logits `[batch, num_classes]`.

    For each of `channels` a convolution and a pooling that halves the image, then one dense layer:
    8 x 8 x 1 images, such as scikit-learn's digits, pass as 8 x 8 x 16, 4 x 4 x 16, 4 x 4 x 32 and
    2 x 2 x 32. There is no batch normalisation: layers keep no state.

    Raises:
      ConfigError: a number is not positive.

    >>> convnet(channels=[4])
    [LayerSpec(Conv, 4), LayerSpec(Pool), LayerSpec(Flatten), LayerSpec(Dense, 10)]
    """
    if min([num_classes, *channels]) < 1:
        raise ConfigError(
            f"Got num_classes={num_classes} and channels={list(channels)}: all must be at least 1."
        )
    pairs = ((LayerSpec(Conv, size), LayerSpec(Pool)) for size in channels)
    layers = [layer for pair in pairs for layer in pair]
    return [*layers, LayerSpec(Flatten), LayerSpec(nn.Dense, num_classes)]
