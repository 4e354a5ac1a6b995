"""Cross-entropy of logits that are cut over the vocabulary: they are never gathered."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from jaxpipe import losses, tensor
from jaxpipe.mesh import TENSOR

_Loss = TypeVar("_Loss", bound=Callable)


def _taking_cut(loss: _Loss) -> _Loss:
    """Marks a loss function as one that knows what to do with cut outputs."""
    loss.__dict__["takes_cut"] = True
    return loss


@_taking_cut
def cross_entropy(
    outputs: jax.Array, batch: Mapping[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """`losses.cross_entropy` of logits of which each rank has some classes (arXiv:1909.08053).

    The ranks meet for the largest logit of each token, and for two sums.

    Args:
      outputs: logits `[..., vocab]`, of any floating point type; computed in float32. Where the
        `tensor` axis has several ranks the last dim is this rank's piece of the vocabulary: whole
        logits would be counted once a rank.
      batch: as for `losses.cross_entropy`.

    Returns:
      The weighted sum of the losses and the sum of the weights, two float32 scalars, whole. A
      target that counts and is not in `[0, vocab)` makes the loss and its gradients NaN.

    Raises:
      BatchError: targets are missing, are no integers, or their shape does not fit.

    >>> batch = {"targets": jnp.array([2, 0]), "weights": jnp.array([1.0, 3.0])}
    >>> total, weight = cross_entropy(jnp.zeros((2, 4)), batch)
    >>> print(total / weight, weight)  # log(4)
    1.3862944 4.0
    """
    if tensor.size() == 1:
        return losses.cross_entropy(outputs, batch)
    targets, weights = losses.classes(outputs.shape[:-1], batch)
    piece = outputs.shape[-1]
    _, checked = losses.weighed(targets, weights, piece * tensor.size())

    logits = outputs.astype(jnp.float32)
    largest = lax.pmax(lax.stop_gradient(jnp.max(logits, axis=-1)), TENSOR)
    largest = jnp.where(jnp.isfinite(largest), largest, 0)
    exponentials = jnp.sum(jnp.exp(logits - largest[..., None]), axis=-1)
    index = targets - tensor.index() * piece
    own = (index >= 0) & (index < piece)
    index = jnp.where(own, index, 0)[..., None]
    picked = jnp.take_along_axis(logits, index, axis=-1, mode="promise_in_bounds")[..., 0]
    total, picked = tensor.sum_up(jnp.stack([exponentials, jnp.where(own, picked, 0)]))
    return jnp.sum((jnp.log(total) + largest - picked) * checked), jnp.sum(weights)
