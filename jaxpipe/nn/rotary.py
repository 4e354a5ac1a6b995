"""Positions: counted within segments, and as rotations of pairs of features."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxpipe.errors import ConfigError


def positions_within(segment_ids: jax.Array) -> jax.Array:
    """Each token's distance from the first of its segment.

    Args:
      segment_ids: integers `[batch, time]`, another one for each sequence of a row.

    Returns:
      int32 `[batch, time]`.

    >>> print(positions_within(jnp.array([[7, 7, 7, 2, 2]])))
    [[0 1 2 0 1]]
    """
    index = lax.broadcasted_iota(jnp.int32, segment_ids.shape, 1)
    begins = segment_ids != jnp.roll(segment_ids, 1, axis=1)
    return index - lax.cummax(jnp.where(begins, index, 0), axis=1)


def rotary_angles(positions: jax.Array, features: int, theta: float = 10_000.0) -> jax.Array:
    """The angle by which each pair of features turns at each position (arXiv:2104.09864).

    Args:
      positions: integers `[...]`.
      features: of a head, an even number; feature `i` is paired with `i + features / 2`.
      theta: the base: pair `i` turns by `theta ** (-2 * i / features)` a position.

    Returns:
      float32 `[..., features / 2]`.

    Raises:
      ConfigError: the number of features is odd.
    """
    if features % 2:
        raise ConfigError(
            f"Got heads of {features} features, expected an even number, because rotary positions"
            f" turn pairs of them: use {features - 1} or {features + 1}."
        )
    frequencies = theta ** (-jnp.arange(0, features, 2, dtype=jnp.float32) / features)
    return positions[..., None].astype(jnp.float32) * frequencies


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Turns each pair of features by its angle, in float32.

    The pairs are those of the two halves, as in Hugging Face's `rotate_half`, not neighbours as in
    the paper.

    Args:
      x: `[..., features]`.
      angles: of a shape that broadcasts to `[..., features / 2]`.

    Returns:
      Like `x`.
    """
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    turned = jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
    return turned.astype(x.dtype)
