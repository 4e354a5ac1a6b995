"""A GPT as a list of layers: an embedding, blocks of attention and MLP, a head.

Written so that little is kept between a microbatch's forward and its backward, and so that XLA's
CPU backend need not transpose activations. F and B of two blocks of width 256 on [2, 128] tokens in
float32, with the residuals passing through slots, on one CPU core:

  activations as [batch, time, width] throughout, autodiff keeps what it likes   32 ms, 21.3 MiB
  as matrices [batch * time, width], but for attention                           28 ms, 20.3 MiB
  and what is cheap to compute again computed again (`nn.recomputed`)            25 ms,  6.0 MiB

At the speed that each matrix product has alone, these would take 17 ms.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax

from jaxpipe import tensor
from jaxpipe.cache import Cache, CacheSpecs
from jaxpipe.errors import BatchError, ConfigError
from jaxpipe.layers import LayerSpec, TiedLayerSpec
from jaxpipe.nn import (
    Attention,
    ColumnDense,
    Dropout,
    Embedding,
    GeluMLP,
    LayerNorm,
    embedding_table,
    is_cut,
    lookup,
    positions_within,
)

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
      norm_eps: what norms add to the variance.
      dropout: the probability of dropping a feature of what attention and MLP add, in training.
      tied: whether the logits are products with the vectors of the token ids.
      sequence_parallel: whether activations are cut along time between the layers, where the
        `tensor` axis has several ranks (arXiv:2205.05198).

    Several ranks share each block, and must divide `num_heads`, `mlp_ratio * width`, `vocab_size`
    and, with `sequence_parallel`, the time.

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
    norm_eps: float = 1e-6
    dropout: float = 0.0
    tied: bool = False
    sequence_parallel: bool = False

    def __post_init__(self):
        sizes = ("vocab_size", "width", "num_layers", "num_heads", "sequence_length", "mlp_ratio")
        problems = [
            f"{name}={getattr(self, name)} is not at least 1"
            for name in sizes
            if getattr(self, name) < 1
        ]
        if self.num_heads > 0 and self.width % self.num_heads:
            problems.append(f"width={self.width} is no multiple of num_heads={self.num_heads}")
        if not self.norm_eps > 0:
            problems.append(f"norm_eps={self.norm_eps} is not above 0")
        if not 0 <= self.dropout < 1:
            problems.append(f"dropout={self.dropout} is not in [0, 1)")
        if problems:
            raise ConfigError(f"GPTConfig: {'; '.join(problems)}.")


def gpt(config: GPTConfig, packed: bool = False) -> list[LayerSpec]:
    """A GPT of `config.num_layers + 2` layers: tokens, int32 `[batch, time]`, to logits.

    With `config.tied` there are two more, because layers that share a parameter have no other: the
    tokens' vectors, the positions, the blocks, the norm, and the tokens' vectors again.

    Args:
      config: its sizes.
      packed: whether each row holds several sequences, one after the other. The batch then has a
        field `"segment_ids"`, integers `[batch, time]`, another one for each sequence of a row:
        tokens attend only within their segment, and positions count from its first token.

    The logits are `[batch, time, vocab]`, and those at `t` depend on tokens up to `t` only. Where
    the `tensor` axis has several ranks they are cut over the vocabulary, as `nn.cross_entropy`
    takes them.

    >>> gpt(GPTConfig(num_layers=2, width=8))[0]
    LayerSpec(Embed, GPTConfig(vocab_size=256, width=8, num_layers=2, num_heads=4, \
sequence_length=128, mlp_ratio=4, norm_eps=1e-06, dropout=0.0, tied=False, sequence_parallel=False))
    """
    side = ("segment_ids",) if packed else ()
    blocks = [LayerSpec(Block, config, batch_inputs=side) for _ in range(config.num_layers)]
    cut = config.sequence_parallel
    if not config.tied:
        return [LayerSpec(Embed, config, batch_inputs=side), *blocks, LayerSpec(Head, config)]
    token = functools.partial(
        TiedLayerSpec, "token", Embedding, config.vocab_size, config.width, sequence_parallel=cut
    )
    return [
        token(),
        LayerSpec(Position, config, batch_inputs=side),
        *blocks,
        LayerSpec(LayerNorm, config.norm_eps, sequence_parallel=cut),
        token(forward_fn=Embedding.attend),
    ]


class Embed(nn.Module):
    """The sum of a learned vector per token id and one per position.

    Ids beyond the vocabulary give NaN; `PipelineModule(id_ranges=...)` refuses them beforehand.
    """

    config: GPTConfig

    @property
    def max_positions(self) -> int:
        """How many positions it knows."""
        return self.config.sequence_length

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        *,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
    ) -> jax.Array:
        """Tokens, integers `[batch, time]`, to `[batch, time, width]`; see `gpt` and `_rows`."""
        config = self.config
        token = embedding_table(self, "token", config.vocab_size, config.width)
        x = lookup(token, tokens, config.sequence_parallel)
        return x + _rows(self, config, tokens.shape[1], segment_ids, positions)


class Position(nn.Module):
    """Adds a learned vector per position."""

    config: GPTConfig

    @property
    def takes_cut(self) -> bool:
        """Whether its input comes cut over the `tensor` axis, where that has several ranks."""
        return self.config.sequence_parallel

    @property
    def max_positions(self) -> int:
        """How many positions it knows."""
        return self.config.sequence_length

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
    ) -> jax.Array:
        """`[batch, time, width]` to the same; see `gpt` for `segment_ids`, and `_rows`."""
        time = x.shape[1] * (tensor.size() if is_cut(self.config.sequence_parallel) else 1)
        return x + _rows(self, self.config, time, segment_ids, positions)


class Block(nn.Module):
    """Causal self-attention and an MLP, each added to what it read through a LayerNorm."""

    config: GPTConfig

    @property
    def takes_cut(self) -> bool:
        """Whether its input comes cut over the `tensor` axis, where that has several ranks."""
        return self.config.sequence_parallel

    @nn.nowrap
    def init_cache(self, x: Any, capacity: int) -> CacheSpecs:
        """That of its attention."""
        return Attention(self.config.num_heads, parent=None).init_cache(x, capacity)

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        segment_ids: jax.Array | None = None,
        train: bool = False,
        cache: Cache | None = None,
    ) -> Any:
        """`[batch, time, width]` to the same; with a cache, to that and the cache; see `gpt`."""
        config, cut = self.config, self.config.sequence_parallel
        into_residual = nn.initializers.normal(_INITIAL_SCALE / math.sqrt(2 * config.num_layers))
        attention = Attention(
            config.num_heads, sequence_parallel=cut, out_init=into_residual, name="attention"
        )
        mlp = GeluMLP(
            config.mlp_ratio * config.width,
            sequence_parallel=cut,
            out_init=into_residual,
            name="mlp",
        )
        dropout = Dropout(config.dropout, sequence_parallel=cut)
        norm = functools.partial(LayerNorm, config.norm_eps, sequence_parallel=cut)

        # As matrices, but where a cut needs to know which dim is time.
        tokens = x if is_cut(cut) else x.reshape(-1, config.width)
        read = norm(name="attention_norm")(tokens)
        mixed = attention(read.reshape(x.shape), segment_ids=segment_ids, cache=cache)
        mixed, cache = (mixed, None) if cache is None else mixed
        tokens = tokens + dropout(mixed.reshape(tokens.shape), train=train)
        read = norm(name="mlp_norm")(tokens)
        y = (tokens + dropout(mlp(read), train=train)).reshape(x.shape)
        return y if cache is None else (y, cache)


class Head(nn.Module):
    """A last LayerNorm and the projection to logits, without bias."""

    config: GPTConfig

    @property
    def takes_cut(self) -> bool:
        """Whether its input comes cut over the `tensor` axis, where that has several ranks."""
        return self.config.sequence_parallel

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, time, width]` to logits `[batch, time, vocab]`, cut over the vocabulary."""
        cut, size = self.config.sequence_parallel, self.config.vocab_size
        tokens = x if is_cut(cut) else x.reshape(-1, self.config.width)
        tokens = LayerNorm(self.config.norm_eps, cut, name="norm")(tokens)
        logits = ColumnDense(size, use_bias=False, sequence_parallel=cut, name="logits")(tokens)
        return logits.reshape(len(x), -1, logits.shape[-1])


def _check_length(config: GPTConfig, time: int) -> None:
    if time > config.sequence_length:
        raise BatchError(
            f"Got sequences of {time} tokens, and GPTConfig(sequence_length="
            f"{config.sequence_length}) learns no more positions than that: cut the sequences, "
            f"or ask for sequence_length={time}."
        )


def _rows(
    module: nn.Module,
    config: GPTConfig,
    time: int,
    segment_ids: jax.Array | None,
    positions: jax.Array | None,
) -> jax.Array:
    """The vectors of a batch's positions, `[time, width]` or `[batch, time, width]`.

    They count from the first token (of a segment), unless `positions`, `[batch, time]`, say it: of
    tokens that follow others. Whoever knows how many there are has checked that they are learned.
    """
    if positions is None:
        _check_length(config, time)
    shape = (config.sequence_length, config.width)
    position = module.param("position", nn.initializers.normal(_INITIAL_SCALE), shape)
    index: Any = positions
    if positions is None:
        index = slice(time) if segment_ids is None else positions_within(segment_ids)
    return tensor.split(position[index], -2) if config.sequence_parallel else position[index]
