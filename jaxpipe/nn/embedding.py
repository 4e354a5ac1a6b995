"""Embeddings of which each rank holds the vectors of some token ids."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxpipe import tensor
from jaxpipe.errors import BatchError
from jaxpipe.nn.cut import check_time, cut_param, is_cut
from jaxpipe.nn.dense import NORMAL, columns


class Embedding(nn.Module):
    """A learned vector for each token id.

    Ids beyond the vocabulary give NaN; `PipelineModule(id_ranges=...)` refuses them beforehand.

    Attributes:
      vocab_size: how many ids there are; a multiple of the ranks.
      width: of the vectors.
      sequence_parallel: whether activations go, and come to `attend`, cut along time.
      embedding_init: of the vectors, `[vocab_size, width]`.
    """

    vocab_size: int
    width: int
    sequence_parallel: bool = False
    embedding_init: nn.initializers.Initializer = NORMAL

    def setup(self) -> None:
        """Declares the table, for both of its uses."""
        self.embedding = embedding_table(
            self, "embedding", self.vocab_size, self.width, self.embedding_init
        )

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Tokens, integers `[batch, time]`, to `[batch, time, width]`.

        Raises:
          ConfigError: the ranks do not divide the vocabulary.
          BatchError: the tokens are of another shape or type, or the ranks do not divide the
            time, which `sequence_parallel` needs.
        """
        return lookup(self.embedding, tokens, self.sequence_parallel)

    def attend(self, x: jax.Array) -> jax.Array:
        """`[batch, time, width]` to logits `[batch, time, vocab_size]`, cut over the vocabulary."""
        return columns(x, [self.embedding.T], self.sequence_parallel)[0]


def embedding_table(
    module: nn.Module,
    name: str,
    vocab_size: int,
    width: int,
    init: nn.initializers.Initializer = NORMAL,
) -> jax.Array:
    """A parameter of `module`, `[vocab_size, width]`, of which each rank has some rows.

    Raises:
      ConfigError: the ranks do not divide the vocabulary.
    """
    return cut_param(module, name, init, (vocab_size, width), 0, "vocab_size")


def lookup(table: jax.Array, tokens: jax.Array, sequence_parallel: bool = False) -> jax.Array:
    """The rows of a table that is cut over the vocabulary.

    Args:
      table: this rank's rows, `[vocab, width]`.
      tokens: integers `[batch, time]`, whole. Those beyond the vocabulary give NaN; as everywhere
        in JAX, negative ones count from the end.
      sequence_parallel: whether the result is to be cut along time.

    Returns:
      `[batch, time, width]`.

    Raises:
      BatchError: the tokens are no integers `[batch, time]`, or the ranks do not divide the time,
        and it is to be cut.
    """
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise BatchError(
            f"got token ids of type {tokens.dtype} and shape {tokens.shape}, expected integers"
            " [batch, time]: a row for each sequence, also of a single one."
        )
    if tensor.size() == 1:
        return jnp.take(table, tokens, axis=0)
    piece = table.shape[0]
    whole = piece * tensor.size()
    index = tokens.astype(jnp.int32)
    index = jnp.where(index < 0, index + whole, index)
    known = (index >= 0) & (index < whole)
    index -= tensor.index() * piece
    own = (index >= 0) & (index < piece)
    # Out of bounds of its piece a rank reads zeros, and its gradients go nowhere.
    read = jnp.take(table, jnp.where(own, index, piece), axis=0, mode="fill", fill_value=0)
    read = jnp.where(known[..., None], read, jnp.nan)
    if is_cut(sequence_parallel):
        check_time(tokens.shape[1])
        return tensor.reduce_scatter(read, 1)
    return tensor.sum_up(read)
