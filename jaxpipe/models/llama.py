"""A Llama as a list of layers: token vectors, blocks of attention and a gated MLP, a head.

The published models differ from `models.gpt` in RMSNorm for LayerNorm, rotary positions inside
attention for learned ones at the start, keys and values that several queries share, SwiGLU for
GELU, and no biases (arXiv:2302.13971, arXiv:2307.09288).
"""

import functools
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax

from jaxpipe.cache import Cache, CacheSpecs
from jaxpipe.errors import ConfigError
from jaxpipe.layers import LayerSpec, TiedLayerSpec
from jaxpipe.nn import Attention, ColumnDense, Dropout, Embedding, RMSNorm, SwiGLU, is_cut


@dataclass(frozen=True)
class LlamaConfig:
    """The sizes of a Llama.

    Attributes:
      vocab_size: how many token ids there are.
      width: features per token between the layers.
      num_layers: blocks; the list of layers has two more, the embedding and the head.
      num_heads: query heads per block; `width` is an even multiple of it.
      num_kv_heads: heads of keys and values; `num_heads` is a multiple of it.
      hidden: hidden features of the MLP.
      rotary_theta: the base of the rotary positions.
      norm_eps: what norms add to the mean square.
      dropout: the probability of dropping a feature of what attention and MLP add, in training.
      tied: whether the logits are products with the vectors of the token ids.
      sequence_parallel: whether activations are cut along time between the layers, where the
        `tensor` axis has several ranks (arXiv:2205.05198).

    Several ranks share each block, and must divide `num_kv_heads`, `hidden`, `vocab_size` and, with
    `sequence_parallel`, the time.

    Raises:
      ConfigError: lists every value that cannot be.

    >>> LlamaConfig(num_heads=4, num_kv_heads=3)
    Traceback (most recent call last):
    jaxpipe.errors.ConfigError: LlamaConfig: num_heads=4 is no multiple of num_kv_heads=3.
    """

    vocab_size: int = 256
    width: int = 256
    num_layers: int = 8
    num_heads: int = 4
    num_kv_heads: int = 2
    hidden: int = 704
    rotary_theta: float = 10_000.0
    norm_eps: float = 1e-5
    dropout: float = 0.0
    tied: bool = False
    sequence_parallel: bool = False

    def __post_init__(self):
        sizes = ("vocab_size", "width", "num_layers", "num_heads", "num_kv_heads", "hidden")
        problems = [
            f"{name}={getattr(self, name)} is not at least 1"
            for name in sizes
            if getattr(self, name) < 1
        ]
        problems += [
            f"{name}={getattr(self, name)} is not above 0"
            for name in ("rotary_theta", "norm_eps")
            if not getattr(self, name) > 0
        ]
        if self.num_heads > 0 and self.width % (2 * self.num_heads):
            problems.append(f"width={self.width} is no even multiple of num_heads={self.num_heads}")
        if self.num_kv_heads > 0 and self.num_heads % self.num_kv_heads:
            problems.append(
                f"num_heads={self.num_heads} is no multiple of num_kv_heads={self.num_kv_heads}"
            )
        if not 0 <= self.dropout < 1:
            problems.append(f"dropout={self.dropout} is not in [0, 1)")
        if problems:
            raise ConfigError(f"LlamaConfig: {'; '.join(problems)}.")


def llama(config: LlamaConfig, packed: bool = False) -> list[LayerSpec]:
    """A Llama of `config.num_layers + 2` layers: tokens, int32 `[batch, time]`, to logits.

    With `config.tied` there is one more, because layers that share a parameter have no other: the
    tokens' vectors, the blocks, the norm, and the tokens' vectors again.

    Args:
      config: its sizes.
      packed: whether each row holds several sequences, one after the other. The batch then has a
        field `"segment_ids"`, integers `[batch, time]`, another one for each sequence of a row:
        tokens attend only within their segment, and positions count from its first token.

    The logits are `[batch, time, vocab]`, and those at `t` depend on tokens up to `t` only. Where
    the `tensor` axis has several ranks they are cut over the vocabulary, as `nn.cross_entropy`
    takes them.

    >>> llama(LlamaConfig(num_layers=1, width=8))[0]
    LayerSpec(Embedding, 256, 8, sequence_parallel=False)
    """
    side = ("segment_ids",) if packed else ()
    cut = config.sequence_parallel
    blocks = [LayerSpec(Block, config, batch_inputs=side) for _ in range(config.num_layers)]
    arguments = (Embedding, config.vocab_size, config.width)
    if not config.tied:
        return [
            LayerSpec(*arguments, sequence_parallel=cut),
            *blocks,
            LayerSpec(Head, config),
        ]
    token = functools.partial(TiedLayerSpec, "token", *arguments, sequence_parallel=cut)
    return [
        token(),
        *blocks,
        LayerSpec(RMSNorm, config.norm_eps, sequence_parallel=cut),
        token(forward_fn=Embedding.attend),
    ]


class Block(nn.Module):
    """Causal self-attention and a gated MLP, each added to what it read through an RMSNorm."""

    config: LlamaConfig

    @property
    def takes_cut(self) -> bool:
        """Whether its input comes cut over the `tensor` axis, where that has several ranks."""
        return self.config.sequence_parallel

    @nn.nowrap
    def init_cache(self, x: Any, capacity: int) -> CacheSpecs:
        """That of its attention."""
        config = self.config
        attention = Attention(config.num_heads, config.num_kv_heads, parent=None)
        return attention.init_cache(x, capacity)

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        segment_ids: jax.Array | None = None,
        train: bool = False,
        cache: Cache | None = None,
    ) -> Any:
        """`[batch, time, width]` to the same; with a cache, to that and the cache; see `llama`."""
        config, cut = self.config, self.config.sequence_parallel
        norm = functools.partial(RMSNorm, config.norm_eps, sequence_parallel=cut)
        attention = Attention(
            config.num_heads,
            config.num_kv_heads,
            rotary_theta=config.rotary_theta,
            use_bias=False,
            sequence_parallel=cut,
            name="attention",
        )
        mlp = SwiGLU(config.hidden, sequence_parallel=cut, name="mlp")
        dropout = Dropout(config.dropout, sequence_parallel=cut)

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
    """A last RMSNorm and the projection to logits."""

    config: LlamaConfig

    @property
    def takes_cut(self) -> bool:
        """Whether its input comes cut over the `tensor` axis, where that has several ranks."""
        return self.config.sequence_parallel

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, time, width]` to logits `[batch, time, vocab]`, cut over the vocabulary."""
        cut, size = self.config.sequence_parallel, self.config.vocab_size
        tokens = x if is_cut(cut) else x.reshape(-1, self.config.width)
        tokens = RMSNorm(self.config.norm_eps, cut, name="norm")(tokens)
        logits = ColumnDense(size, use_bias=False, sequence_parallel=cut, name="logits")(tokens)
        return logits.reshape(len(x), -1, logits.shape[-1])
