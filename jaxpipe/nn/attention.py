"""Self-attention, of which each rank computes some of the heads."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxpipe.errors import ConfigError
from jaxpipe.nn.cut import share
from jaxpipe.nn.dense import NORMAL, ColumnDense, RowDense
from jaxpipe.nn.recompute import recomputed
from jaxpipe.nn.rotary import positions_within, rotary_angles, rotate


class Attention(nn.Module):
    """Queries, keys and values, attention, and a projection of all heads together.

    Queries may share keys and values (arXiv:2305.13245): query head `h` reads key head
    `h // (num_heads / num_kv_heads)`. The columns of `qkv` are `[num_kv_heads, queries of one key
    head + key + value, features of a head]`, so that a piece of them is some heads, whole.

    Attributes:
      num_heads: of the queries; the width is a multiple of it.
      num_kv_heads: of keys and values, which divides `num_heads`; None for as many. The ranks must
        divide it.
      rotary_theta: base of rotary positions (arXiv:2104.09864), or None for none.
      use_bias: whether the projections have biases.
      causal: whether each token attends to itself and those before it only, rather than to all.
      sequence_parallel: whether activations come and go cut along time.
      kernel_init: of `qkv`, `[width, columns]`.
      out_init: of `out`, `[width, width]`.
    """

    num_heads: int
    num_kv_heads: int | None = None
    rotary_theta: float | None = None
    use_bias: bool = True
    causal: bool = True
    sequence_parallel: bool = False
    kernel_init: nn.initializers.Initializer = NORMAL
    out_init: nn.initializers.Initializer = NORMAL

    @property
    def takes_cut(self) -> bool:
        """Whether its input comes cut over the `tensor` axis, where that has several ranks."""
        return self.sequence_parallel

    @nn.compact
    def __call__(self, x: jax.Array, *, segment_ids: jax.Array | None = None) -> jax.Array:
        """`[batch, time, width]` to the same.

        Args:
          x: whole, or cut along time with `sequence_parallel`.
          segment_ids: integers `[batch, time]`, whole, or None: where they differ, no attention is
            paid, and positions count from the first of a segment.

        Raises:
          ConfigError: heads do not divide the width, or one another, or ranks the heads.
        """
        width, heads = x.shape[-1], self.num_heads
        kv_heads = heads if self.num_kv_heads is None else self.num_kv_heads
        if width % heads or heads % kv_heads:
            raise ConfigError(
                f"Got width = {width}, num_heads = {heads} and num_kv_heads = {kv_heads}: each"
                " must be a multiple of the next."
            )
        local = share(kv_heads, "num_heads" if self.num_kv_heads is None else "num_kv_heads")
        common: dict[str, Any] = dict(
            use_bias=self.use_bias, sequence_parallel=self.sequence_parallel
        )
        columns = (heads + 2 * kv_heads) * (width // heads)
        qkv = ColumnDense(columns, kernel_init=self.kernel_init, name="qkv", **common)(x)
        features = width // heads
        mixed = _mix(qkv, segment_ids, local, features, self.rotary_theta, self.causal)
        return RowDense(width, kernel_init=self.out_init, name="out", **common)(mixed)


@functools.partial(recomputed, static_argnums=(2, 3, 4, 5))
def _mix(
    qkv: jax.Array,
    segment_ids: jax.Array | None,
    kv_heads: int,
    features: int,
    theta: float | None,
    causal: bool,
) -> jax.Array:
    """From the columns of `qkv`, `[batch, time, columns]`, to `[batch, time, width]`."""
    batch, time = qkv.shape[:2]
    heads = qkv.reshape(batch, time, kv_heads, -1, features)
    q, k, v = heads[..., :-2, :], heads[..., -2:-1, :], heads[..., -1:, :]
    if theta is not None:
        positions = jnp.arange(time) if segment_ids is None else positions_within(segment_ids)
        angles = rotary_angles(positions, features, theta)[..., None, None, :]
        q, k = rotate(q, angles), rotate(k, angles)
    # [batch, kv_heads, queries * time, features], and keys and values alike.
    q, k, v = (x.transpose(0, 2, 3, 1, 4).reshape(batch, kv_heads, -1, features) for x in (q, k, v))
    mixed = (causal_attention if causal else full_attention)(q, k, v, segment_ids)
    mixed = mixed.reshape(batch, -1, time, features)  # [batch, heads, time, features]
    return mixed.swapaxes(1, 2).reshape(batch, time, -1)


def causal_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array | None = None
) -> jax.Array:
    """Softmax attention of each token to itself and those before it.

    Its weights, `[time, time]` for each head, are in float32.

    Args:
      q: queries, `[batch, kv_heads, queries * time, features]`: several queries may share a key
        head, one after the other, each at all times.
      k: keys, `[batch, kv_heads, time, features]`.
      v: values, like the keys.
      segment_ids: `[batch, time]`, or None: where they differ, no attention is paid.

    Returns:
      Like the queries.
    """
    time = k.shape[2]
    earlier = jnp.tile(jnp.arange(time), q.shape[2] // time)[:, None] >= jnp.arange(time)
    return _attention(q, k, v, _within(segment_ids, q, k, earlier))


def full_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array | None = None
) -> jax.Array:
    """Softmax attention of each token to all; arguments and result as `causal_attention`."""
    return _attention(q, k, v, _within(segment_ids, q, k, None))


def _within(
    segment_ids: jax.Array | None, q: jax.Array, k: jax.Array, visible: jax.Array | None
) -> jax.Array | None:
    """Which keys a query sees, of those that are visible and of its segment; None for all."""
    if segment_ids is None:
        return visible
    own = jnp.tile(segment_ids, (1, q.shape[2] // k.shape[2]))
    same = own[:, None, :, None] == segment_ids[:, None, None, :]
    return same if visible is None else visible & same


def _attention(q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array | None) -> jax.Array:
    scores = jnp.einsum("bhtd,bhsd->bhts", q, k, preferred_element_type=jnp.float32)
    scores = scores / math.sqrt(q.shape[-1])
    if visible is not None:
        scores = jnp.where(visible, scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bhts,bhsd->bhtd", weights, v)
