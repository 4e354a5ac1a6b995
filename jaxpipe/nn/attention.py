"""Self-attention, of which each rank computes some of the heads."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxpipe.cache import Cache, CacheSpecs, refuse_decoding
from jaxpipe.errors import ConfigError, LayerError
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

    @nn.nowrap
    def init_cache(self, x: Any, capacity: int) -> CacheSpecs:
        """What it remembers of `x`, abstract `[batch, time, width]`: keys, turned, and values.

        Each is `[batch, num_kv_heads, capacity, features of a head]`, of this rank's heads.

        Raises:
          LayerError: it attends to what comes later, too.
        """
        if not self.causal:
            raise LayerError(
                "attention with causal=False sees what comes later, so no text can be generated."
            )
        kv_heads, features = self._heads(x.shape[-1])
        spec = jax.ShapeDtypeStruct((x.shape[0], kv_heads, capacity, features), x.dtype)
        return dict(keys=spec, values=spec)

    @nn.nowrap
    def _heads(self, width: int) -> tuple[int, int]:
        """This rank's heads of keys and values, and the features of a head."""
        heads = self.num_heads
        kv_heads = heads if self.num_kv_heads is None else self.num_kv_heads
        if width % heads or heads % kv_heads:
            raise ConfigError(
                f"Got width = {width}, num_heads = {heads} and num_kv_heads = {kv_heads}: each"
                " must be a multiple of the next."
            )
        what = "num_heads" if self.num_kv_heads is None else "num_kv_heads"
        return share(kv_heads, what), width // heads

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        segment_ids: jax.Array | None = None,
        cache: Cache | None = None,
    ) -> Any:
        """`[batch, time, width]` to the same; with a cache, to that and the cache.

        Args:
          x: whole, or cut along time with `sequence_parallel`.
          segment_ids: integers `[batch, time]`, whole, or None: where they differ, no attention is
            paid, and positions count from the first of a segment.
          cache: keys and values of what came before, which `x` follows; no segments then.

        Raises:
          ConfigError: heads do not divide the width, or one another, or ranks the heads.
        """
        width = x.shape[-1]
        local, features = self._heads(width)
        kv_heads = self.num_heads if self.num_kv_heads is None else self.num_kv_heads
        common: dict[str, Any] = dict(
            use_bias=self.use_bias, sequence_parallel=self.sequence_parallel
        )
        columns = (self.num_heads + 2 * kv_heads) * features
        qkv = ColumnDense(columns, kernel_init=self.kernel_init, name="qkv", **common)(x)
        out = RowDense(width, kernel_init=self.out_init, name="out", **common)
        if cache is None:
            refuse_decoding("attention")
            return out(_mix(qkv, segment_ids, local, features, self.rotary_theta, self.causal))
        mixed, cache = _mix_cached(qkv, cache, local, features, self.rotary_theta)
        return out(mixed), cache


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
    time = qkv.shape[1]
    positions = jnp.arange(time) if segment_ids is None else positions_within(segment_ids)
    q, k, v = _parted(qkv, positions, kv_heads, features, theta)
    return _joined((causal_attention if causal else full_attention)(q, k, v, segment_ids), time)


def _mix_cached(
    qkv: jax.Array, cache: Cache, kv_heads: int, features: int, theta: float | None
) -> tuple[jax.Array, Cache]:
    """The same of tokens that follow others, and the cache with them."""
    q, k, v = _parted(qkv, cache.positions, kv_heads, features, theta)
    cache, time = cache.append("keys", k, 2).append("values", v, 2), qkv.shape[1]
    visible = jnp.tile(cache.visible, (1, q.shape[2] // time, 1))[:, None]
    return _joined(_attention(q, cache["keys"], cache["values"], visible), time), cache


def _parted(
    qkv: jax.Array, positions: jax.Array, kv_heads: int, features: int, theta: float | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries, `[batch, kv_heads, queries * time, features]`; keys and values alike."""
    batch, time = qkv.shape[:2]
    heads = qkv.reshape(batch, time, kv_heads, -1, features)
    q, k, v = heads[..., :-2, :], heads[..., -2:-1, :], heads[..., -1:, :]
    if theta is not None:
        angles = rotary_angles(positions, features, theta)[..., None, None, :]
        q, k = rotate(q, angles), rotate(k, angles)
    flat = lambda x: x.transpose(0, 2, 3, 1, 4).reshape(batch, kv_heads, -1, features)
    return flat(q), flat(k), flat(v)


def _joined(mixed: jax.Array, time: int) -> jax.Array:
    """`[batch, kv_heads, queries * time, features]` to `[batch, time, width]`."""
    mixed = mixed.reshape(len(mixed), -1, time, mixed.shape[-1])  # [batch, heads, time, features]
    return mixed.swapaxes(1, 2).reshape(len(mixed), time, -1)


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
    """Where `visible`, which has the shape of the scores or broadcasts to it; None for all."""
    scores = jnp.einsum("bhtd,bhsd->bhts", q, k, preferred_element_type=jnp.float32)
    scores = scores / math.sqrt(q.shape[-1])
    if visible is not None:
        scores = jnp.where(visible, scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bhts,bhsd->bhtd", weights, v)
