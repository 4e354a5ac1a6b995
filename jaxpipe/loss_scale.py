"""Loss scaling: float16 gradients that would round to zero are made larger on their way.

The gradient of the loss starts as `scale` in place of 1, and what comes out is divided by it in
float32. Where that overflows the step is skipped and the scale falls; after many steps without it
rises (arXiv:1710.03740, section 3.2).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxpipe.errors import OptimizerError

PyTree = Any


@dataclasses.dataclass(frozen=True)
class LossScale:
    """How the scale begins and changes.

    Attributes:
      initial: the first scale.
      interval: steps without an overflow after which it grows; None for a scale that never changes.
      factor: by which it grows, and by one over which it falls.
      smallest: it does not fall further.
      largest: it does not grow further.

    Raises:
      OptimizerError: numbers that mean nothing.
    """

    initial: float = 2.0**15
    interval: int | None = 1000
    factor: float = 2.0
    smallest: float = 1.0
    largest: float = 2.0**24

    def __post_init__(self):
        if not 0 < self.smallest <= self.initial <= self.largest:
            raise OptimizerError(
                f"loss scale: got smallest={self.smallest}, initial={self.initial}, largest="
                f"{self.largest}; expected 0 < smallest <= initial <= largest."
            )
        if self.factor <= 1 or (self.interval is not None and self.interval < 1):
            raise OptimizerError(
                f"loss scale: got factor={self.factor} and interval={self.interval}; expected a"
                " factor above 1, and an interval of at least one step, or None."
            )

    def start(self) -> "ScaleState":
        """The state before the first step."""
        return ScaleState(jnp.float32(self.initial), jnp.int32(0))

    def next(self, state: "ScaleState", finite: jax.Array) -> "ScaleState":
        """The state after a step whose gradients were finite, or not."""
        if self.interval is None:
            return state
        good = state.good_steps + 1
        grown = jnp.where(good >= self.interval, state.scale * self.factor, state.scale)
        scale = jnp.where(finite, grown, state.scale / self.factor)
        return ScaleState(
            jnp.clip(scale, self.smallest, self.largest).astype(jnp.float32),
            jnp.where(finite & (good < self.interval), good, 0).astype(jnp.int32),
        )


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["scale", "good_steps"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class ScaleState:
    """The scale of the next step.

    Attributes:
      scale: float32 scalar.
      good_steps: int32 scalar, steps without an overflow since it last changed.
    """

    scale: Any
    good_steps: Any


def resolve_loss_scale(
    wanted: LossScale | float | str | None, compute_dtype: Any
) -> LossScale | None:
    """What `jaxpipe.initialize` is asked for: "auto" scales float16 and nothing else.

    Raises:
      OptimizerError: it means nothing.
    """
    if wanted == "auto":
        is_half = compute_dtype is not None and jnp.dtype(compute_dtype) == jnp.float16
        return LossScale() if is_half else None
    if wanted is None or isinstance(wanted, LossScale):
        return wanted
    if isinstance(wanted, (int, float)) and not isinstance(wanted, bool):
        return LossScale(wanted, None, smallest=min(wanted, 1.0), largest=max(wanted, 2.0**24))
    raise OptimizerError(
        f"loss_scale={wanted!r}; expected 'auto', None, a number that stays, or a LossScale."
    )


def scale_of(scale: jax.Array | float | None, scaling: LossScale | None) -> jax.Array | None:
    """The loss scale of one step; None where losses are not scaled.

    Args:
      scale: what is asked for; None: what the engine begins with.
      scaling: of the engine.

    Raises:
      OptimizerError: one is asked for, and the engine has none.
    """
    if scaling is not None:
        return jnp.asarray(scaling.initial if scale is None else scale, jnp.float32)
    if scale is None:
        return None
    raise OptimizerError(
        f"got scale={scale}, but this engine does not scale losses. Leave it out, or give"
        " initialize(..., loss_scale=...)."
    )
