"""From logits to the next token: the most probable one, or one by chance.

What is drawn depends on the seed, the sequence and the token's number in it: not on how sequences
are cut into microbatches, nor on the mesh.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxpipe.errors import ConfigError

_HIGHEST = 29  # bit of a float32 up to 1


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
      temperature: what logits are divided by; 0 for the most probable token.
      top_p: tokens are drawn from the smallest set of the most probable ones that together have
        this probability (nucleus sampling, arXiv:1904.09751), at temperature 1; 1 for all.
      seed: of what is drawn.
      num_ids: ids from this one on are never chosen, where the model has room for more than its
        tokenizer has; None for all.

    Raises:
      ConfigError: a value is out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    num_ids: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature: got {self.temperature}, expected 0 or more.")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p: got {self.top_p}, expected more than 0, and at most 1.")
        if self.num_ids is not None and self.num_ids < 1:
            raise ConfigError(f"num_ids: got {self.num_ids}, expected at least 1.")

    @functools.cached_property
    def arrays(self) -> dict[str, Any]:
        """The same as arrays, so that other values compile nothing anew."""
        most = np.iinfo(np.int32).max if self.num_ids is None else self.num_ids
        return dict(
            temperature=np.float32(self.temperature),
            top_p=np.float32(self.top_p),
            key=np.asarray(jax.random.key_data(jax.random.key(self.seed))),
            num_ids=np.int32(most),
        )


def sample(
    logits: jax.Array, sequences: jax.Array, numbers: jax.Array, how: Mapping[str, Any]
) -> jax.Array:
    """A token for each row.

    Args:
      logits: float32 `[rows, vocabulary]`, whole.
      sequences: which sequence each row is, int32 `[rows]`.
      numbers: of the tokens that are chosen, in each sequence, int32 `[rows]`.
      how: `Sampling.arrays`.

    Returns:
      int32 `[rows]`.
    """
    known = jnp.arange(logits.shape[-1]) < how["num_ids"]
    logits = jnp.where(known, logits, -jnp.inf)
    warm = how["temperature"] > 0
    # Before the temperature: a cold one would leave but one token, of which a text never gets rid.
    kept = lax.cond(warm & (how["top_p"] < 1), _nucleus, lambda x, _: x, logits, how["top_p"])
    scaled = kept / jnp.where(warm, how["temperature"], 1)
    base = jax.random.wrap_key_data(how["key"])
    fold = lambda sequence, number: jax.random.fold_in(jax.random.fold_in(base, sequence), number)
    draw = lambda key: jax.random.gumbel(key, logits.shape[-1:], logits.dtype)
    noise = jax.vmap(draw)(jax.vmap(fold)(sequences, numbers))
    return jnp.argmax(scaled + jnp.where(warm, noise, 0), axis=-1).astype(jnp.int32)


def _nucleus(logits: jax.Array, top_p: jax.Array) -> jax.Array:
    """Logits, without those of tokens that are not needed for this probability.

    Sorting would be the short way, but takes ten times as long as this on CPU, a millisecond for
    4096 ids. Floats that are not negative are in the order of their bits: so the least probability
    that is needed is found bit by bit, the highest first.
    """
    probabilities = jax.nn.softmax(logits, axis=-1)
    bits = lax.bitcast_convert_type(probabilities, jnp.int32)

    def with_bit(number: jax.Array, least: jax.Array) -> jax.Array:
        more = least | (1 << (_HIGHEST - number))
        mass = jnp.sum(jnp.where(bits >= more, probabilities, 0), axis=-1, keepdims=True)
        return jnp.where(mass >= top_p, more, least)

    none = jnp.zeros((*logits.shape[:-1], 1), jnp.int32)
    least = lax.fori_loop(0, _HIGHEST + 1, with_bit, none)
    return jnp.where(bits >= least, logits, -jnp.inf)
