"""A Vision Transformer as a list of layers: patches of an image, encoder blocks, a head.

An image is cut into patches, and these are to an encoder what tokens are to a language model
(arXiv:2010.11929).
"""

from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxpipe.errors import BatchError, ConfigError
from jaxpipe.layers import LayerSpec
from jaxpipe.nn import Attention, Dropout, GeluMLP, LayerNorm

_NORMAL = nn.initializers.normal(0.02)


@dataclass(frozen=True)
class ViTConfig:
    """The sizes of a Vision Transformer; those of its images come with the first batch.

    Attributes:
      num_classes: how many classes there are.
      patch_size: height and width of a patch, in pixels; those of an image are multiples of it.
      width: features per patch between the layers.
      num_layers: blocks; the list of layers has two more, the embedding and the head.
      num_heads: attention heads per block; `width` is a multiple of it.
      mlp_ratio: hidden features of the MLP, in units of `width`.
      pooling: what the head reads: "class", a learned token beside the patches, as in the paper;
        or "mean", of the patches (arXiv:2205.01580).
      norm_eps: what norms add to the variance.
      dropout: the probability of dropping a feature of what attention and MLP add, in training.

    Several `tensor` ranks share each block, and must divide `num_heads` and `mlp_ratio * width`;
    each has all of the embedding and of the head.

    Raises:
      ConfigError: lists every value that cannot be.

    >>> ViTConfig(width=100, num_heads=3)
    Traceback (most recent call last):
    jaxpipe.errors.ConfigError: ViTConfig: width=100 is no multiple of num_heads=3.
    """

    num_classes: int = 10
    patch_size: int = 4
    width: int = 256
    num_layers: int = 8
    num_heads: int = 4
    mlp_ratio: int = 4
    pooling: Literal["class", "mean"] = "class"
    norm_eps: float = 1e-6
    dropout: float = 0.0

    def __post_init__(self):
        sizes = ("num_classes", "patch_size", "width", "num_layers", "num_heads", "mlp_ratio")
        problems = [
            f"{name}={getattr(self, name)} is not at least 1"
            for name in sizes
            if getattr(self, name) < 1
        ]
        if self.num_heads > 0 and self.width % self.num_heads:
            problems.append(f"width={self.width} is no multiple of num_heads={self.num_heads}")
        if self.pooling not in ("class", "mean"):
            problems.append(f"pooling={self.pooling!r} is not 'class' or 'mean'")
        if not self.norm_eps > 0:
            problems.append(f"norm_eps={self.norm_eps} is not above 0")
        if not 0 <= self.dropout < 1:
            problems.append(f"dropout={self.dropout} is not in [0, 1)")
        if problems:
            raise ConfigError(f"ViTConfig: {'; '.join(problems)}.")


def vit(config: ViTConfig) -> list[LayerSpec]:
    """A Vision Transformer of `config.num_layers + 2` layers, from images to logits.

    Images are `[batch, height, width, channels]`, or `[batch, height, width]` of one channel:
    floats, or uint8 pixels, which count from 0 to 1. The logits are `[batch, num_classes]`, whole
    on every rank of the `tensor` axis, for `losses.cross_entropy`.

    >>> [layer.typename.__name__ for layer in vit(ViTConfig(num_layers=2, width=8))]
    ['Patches', 'Block', 'Block', 'Head']
    """
    blocks = [LayerSpec(Block, config) for _ in range(config.num_layers)]
    return [LayerSpec(Patches, config), *blocks, LayerSpec(Head, config)]


class Patches(nn.Module):
    """A linear map of each patch, and a learned vector per position."""

    config: ViTConfig

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Images to `[batch, patches, width]`, with a token for the class before the patches.

        Raises:
          BatchError: they are no images, or of a size that is no multiple of the patches'.
        """
        config = self.config
        patches, is_class = patches_of(images, config.patch_size), config.pooling == "class"
        size = patches.shape[1] + is_class
        position = self.param("position", _NORMAL, (size, config.width))
        # Pixels are floats that nobody has cast to the dtype in which layers compute.
        patches = patches.astype(position.dtype)
        x = nn.Dense(config.width, kernel_init=_NORMAL, name="patch")(patches)
        if is_class:
            token = self.param("class_token", nn.initializers.zeros, (config.width,))
            first = jnp.broadcast_to(token, (len(x), 1, config.width))
            x = jnp.concatenate([first, x], axis=1)
        return x + position


class Block(nn.Module):
    """Self-attention and an MLP, each added to what it read through a LayerNorm."""

    config: ViTConfig

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """`[batch, patches, width]` to the same."""
        config = self.config
        attention = Attention(config.num_heads, causal=False, name="attention")
        mlp = GeluMLP(config.mlp_ratio * config.width, name="mlp")
        dropout = Dropout(config.dropout)
        tokens = x.reshape(-1, config.width)
        read = LayerNorm(config.norm_eps, name="attention_norm")(tokens)
        mixed = attention(read.reshape(x.shape)).reshape(tokens.shape)
        tokens = tokens + dropout(mixed, train=train)
        read = LayerNorm(config.norm_eps, name="mlp_norm")(tokens)
        return (tokens + dropout(mlp(read), train=train)).reshape(x.shape)


class Head(nn.Module):
    """A last LayerNorm, one vector of each image, and its logits."""

    config: ViTConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, patches, width]` to logits `[batch, num_classes]`."""
        config = self.config
        # The norm is of each patch by itself, so what is not read need not be normed.
        x = x[:, :1] if config.pooling == "class" else x
        pooled = LayerNorm(config.norm_eps, name="norm")(x).mean(axis=1)
        return nn.Dense(config.num_classes, kernel_init=_NORMAL, name="logits")(pooled)


def patches_of(images: jax.Array, size: int) -> jax.Array:
    """Cuts images into square patches, row by row.

    Args:
      images: `[batch, height, width, channels]`, or `[batch, height, width]` of one channel:
        floats, or uint8 pixels.
      size: height and width of a patch.

    Returns:
      Floats `[batch, patches, size * size * channels]`; pixels are divided by 255.

    Raises:
      BatchError: the arrays are no images, or the patches do not fill them.

    >>> patches_of(jnp.arange(16.0).reshape(1, 4, 4), 2)[0].astype(int).tolist()
    [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    """
    pixels = images.dtype == jnp.uint8
    if images.ndim not in (3, 4) or not (pixels or jnp.issubdtype(images.dtype, jnp.floating)):
        raise BatchError(
            f"Got inputs of type {images.dtype} and shape {images.shape}, expected images: floats"
            " or uint8, [batch, height, width, channels] or [batch, height, width]."
        )
    batch, height, width = images.shape[:3]
    if height % size or width % size:
        raise BatchError(
            f"Got images of {height} x {width}, which patches of {size} x {size} do not fill: use a"
            " patch_size that divides both, or other images."
        )
    floats = images.astype(jnp.float32) / 255 if pixels else images
    grid = floats.reshape(batch, height // size, size, width // size, size, -1)
    rows = grid.swapaxes(2, 3)  # [batch, rows, columns, size, size, channels]
    return rows.reshape(batch, (height // size) * (width // size), -1)
