"""A GPT as a list of layers: an embedding, blocks of attention and MLP, a head.

Written so that little is kept between a microbatch's forward and its backward, and so that XLA's
CPU backend need not transpose activations. F and B of two blocks of width 256 on [2, 128] tokens in
float32, with the residuals passing through slots, on one CPU core:

  activations as [batch, time, width] throughout, autodiff keeps what it likes   32 ms, 21.3 MiB
  as matrices [batch * time, width], but for attention                           28 ms, 20.3 MiB
  and what is cheap to compute again computed again (`_recomputed`)              25 ms,  6.0 MiB

At the speed that each matrix product has alone, these would take 17 ms.
"""

import functools
import math
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxpipe.errors import BatchError, ConfigError
from jaxpipe.layers import LayerSpec

_INITIAL_SCALE = 0.02


@dataclass(frozen=True)
class GPTConfig:
    """The sizes of a GPT.

    Attributes:
      vocab_size: how many token ids there are.
      width: features per token between the layers.
      num_layers: blocks; the list of layers has two more, the embedding and the head.
      num_heads: attention heads per block; `width` is a multiple of it.
      sequence_length: the longest sequence, in tokens: that many positions are learned.
      mlp_ratio: hidden features of the MLP, in units of `width`.
      dropout: the probability of dropping a feature of what attention and MLP add, in training.

    Raises:
      ConfigError: lists every value that cannot be.

    >>> GPTConfig(width=100, num_heads=3)
    Traceback (most recent call last):
    jaxpipe.errors.ConfigError: GPTConfig: width=100 is no multiple of num_heads=3.
    """

    vocab_size: int = 256
    width: int = 256
    num_layers: int = 8
    num_heads: int = 4
    sequence_length: int = 128
    mlp_ratio: int = 4
    dropout: float = 0.0

    def __post_init__(self):
        sizes = ("vocab_size", "width", "num_layers", "num_heads", "sequence_length", "mlp_ratio")
        problems = [
            f"{name}={getattr(self, name)} is not at least 1"
            for name in sizes
            if getattr(self, name) < 1
        ]
        if self.num_heads > 0 and self.width % self.num_heads:
            problems.append(f"width={self.width} is no multiple of num_heads={self.num_heads}")
        if not 0 <= self.dropout < 1:
            problems.append(f"dropout={self.dropout} is not in [0, 1)")
        if problems:
            raise ConfigError(f"GPTConfig: {'; '.join(problems)}.")


def gpt(config: GPTConfig, packed: bool = False) -> list[LayerSpec]:
    """A GPT of `config.num_layers + 2` layers: tokens, int32 `[batch, time]`, to logits.

    Args:
      config: its sizes.
      packed: whether each row holds several sequences, one after the other. The batch then has a
        field `"segment_ids"`, integers `[batch, time]`, another one for each sequence of a row:
        tokens attend only within their segment, and positions count from its first token.

    The logits are `[batch, time, vocab]`, and those at `t` depend on tokens up to `t` only.

    >>> gpt(GPTConfig(num_layers=2, width=8))[0]
    LayerSpec(Embed, GPTConfig(vocab_size=256, width=8, num_layers=2, num_heads=4, \
sequence_length=128, mlp_ratio=4, dropout=0.0))
    """
    side = ("segment_ids",) if packed else ()
    return [
        LayerSpec(Embed, config, batch_inputs=side),
        *(LayerSpec(Block, config, batch_inputs=side) for _ in range(config.num_layers)),
        LayerSpec(Head, config),
    ]


class Embed(nn.Module):
    """The sum of a learned vector per token id and one per position.

    Ids beyond the vocabulary give NaN; `PipelineModule(id_ranges=...)` refuses them beforehand.
    """

    config: GPTConfig

    @nn.compact
    def __call__(self, tokens: jax.Array, *, segment_ids: jax.Array | None = None) -> jax.Array:
        """Tokens, integers `[batch, time]`, to `[batch, time, width]`."""
        config, time = self.config, tokens.shape[1]
        if time > config.sequence_length:
            raise BatchError(
                f"Got sequences of {time} tokens, and GPTConfig(sequence_length="
                f"{config.sequence_length}) learns no more positions than that: cut the sequences, "
                f"or ask for sequence_length={time}."
            )
        token = self.param("token", _normal(), (config.vocab_size, config.width))
        position = self.param("position", _normal(), (config.sequence_length, config.width))
        if segment_ids is None:
            return jnp.take(token, tokens, axis=0) + position[:time]
        return jnp.take(token, tokens, axis=0) + position[_positions_within(segment_ids)]


class Block(nn.Module):
    """Causal self-attention and an MLP, each added to what it read through a LayerNorm."""

    config: GPTConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, *, segment_ids: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """`[batch, time, width]` to the same; see `gpt` for `segment_ids`."""
        config = self.config
        width, hidden = config.width, config.width * config.mlp_ratio
        into_residual = _normal(_INITIAL_SCALE / math.sqrt(2 * config.num_layers))
        dropout = nn.Dropout(config.dropout, deterministic=not train)

        # A weight's gradient contracts over tokens. As one dim they need no transposed copy.
        tokens = x.reshape(-1, width)
        qkv = Dense(3 * width, name="qkv")(LayerNorm(name="attention_norm")(tokens))
        mixed = _attention(qkv.reshape(*x.shape[:2], -1), config.num_heads, segment_ids)
        mixed = Dense(width, kernel_init=into_residual, name="mix")(mixed.reshape(-1, width))
        tokens = tokens + dropout(mixed)

        up = Dense(hidden, name="up")(LayerNorm(name="mlp_norm")(tokens))
        down = Dense(width, kernel_init=into_residual, gelu=True, name="down")(up)
        return (tokens + dropout(down)).reshape(x.shape)


class Head(nn.Module):
    """A last LayerNorm and the projection to logits, without bias."""

    config: GPTConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, time, width]` to logits `[batch, time, vocab]`."""
        tokens = LayerNorm(name="norm")(x.reshape(-1, self.config.width))
        logits = Dense(self.config.vocab_size, use_bias=False, name="logits")(tokens)
        return logits.reshape(*x.shape[:2], -1)


class Dense(nn.Module):
    """`x @ kernel + bias`, of GELU(x) if asked for."""

    features: int
    use_bias: bool = True
    gelu: bool = False
    kernel_init: nn.initializers.Initializer = nn.initializers.normal(_INITIAL_SCALE)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[tokens, width]` to `[tokens, features]`."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        y = _gelu_matmul(x, kernel) if self.gelu else x @ kernel
        if not self.use_bias:
            return y
        return y + self.param("bias", nn.initializers.zeros, (self.features,))


class LayerNorm(nn.Module):
    """Each row to mean 0 and variance 1 (arXiv:1607.06450), then scaled and shifted."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[tokens, width]` to the same."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return _layer_norm(x, scale, bias)


# For backward such a function keeps its arguments only, and the rest is computed again. It is used
# where that takes next to no time beside the matrix products, and keeps a fraction of the memory.
# Where F and B stand in one program XLA may merge the two computations, which is as well.
_recomputed = functools.partial(jax.checkpoint, prevent_cse=False)


@_recomputed
def _layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    centred = x.astype(jnp.float32)
    centred -= jnp.mean(centred, axis=-1, keepdims=True)
    variance = jnp.mean(centred**2, axis=-1, keepdims=True)
    return (centred * lax.rsqrt(variance + 1e-6)).astype(x.dtype) * scale + bias


@_recomputed
def _gelu_matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.nn.gelu(x) @ kernel


@functools.partial(_recomputed, static_argnums=1)
def _attention(qkv: jax.Array, num_heads: int, segment_ids: jax.Array | None) -> jax.Array:
    """Causal softmax attention; its `[time, time]` weights are in float32 and never kept.

    Args:
      qkv: `[batch, time, 3 * width]`: queries, keys and values, each with its heads side by side.
      num_heads: into how many heads the width is cut.
      segment_ids: `[batch, time]`, or None: where they differ, no attention is paid.

    Returns:
      `[batch, time, width]`.
    """
    batch, time = qkv.shape[:2]
    heads = qkv.reshape(batch, time, 3 * num_heads, -1).swapaxes(1, 2)
    q, k, v = jnp.split(heads, 3, axis=1)  # [batch, num_heads, time, width / num_heads]
    scores = jnp.einsum("bhtd,bhsd->bhts", q, k, preferred_element_type=jnp.float32)
    visible = lax.broadcasted_iota(jnp.int32, (time, time), 0) >= lax.broadcasted_iota(
        jnp.int32, (time, time), 1
    )
    if segment_ids is not None:
        visible &= segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    scores = jnp.where(visible, scores / math.sqrt(q.shape[-1]), jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    mixed = jnp.einsum("bhts,bhsd->bhtd", weights, v)
    return mixed.swapaxes(1, 2).reshape(batch, time, -1)


def _positions_within(segment_ids: jax.Array) -> jax.Array:
    """Each token's distance from the first of its segment, `[batch, time]`."""
    index = lax.broadcasted_iota(jnp.int32, segment_ids.shape, 1)
    begins = segment_ids != jnp.roll(segment_ids, 1, axis=1)
    return index - lax.cummax(jnp.where(begins, index, 0), axis=1)


def _normal(scale: float = _INITIAL_SCALE) -> nn.initializers.Initializer:
    return nn.initializers.normal(scale)
