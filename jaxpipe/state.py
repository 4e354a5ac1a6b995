"""What changes in training, and all that a restart needs of the model."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from jaxpipe.loss_scale import ScaleState
from jaxpipe.storage import Placed


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "params", "opt_state", "key", "skipped", "loss_scale"],
    meta_fields=["key_impl"],
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state of a run. Every leaf is an array on the mesh.

    Attributes:
      step: int32 scalar, batches seen; of these some may have been skipped.
      params: the parameters, placed.
      opt_state: the optimizer's state, placed; None for an engine without an optimizer.
      key: key data of the run's PRNG key; step `n` uses `fold_in(key, n)`.
      skipped: int32 scalar, steps in a row, up to the last one, that changed nothing because
        gradients were not finite, or above a limit.
      loss_scale: the loss scale of the next step; None where losses are not scaled.
      key_impl: the key's implementation (static).
    """

    step: Any
    params: Placed
    opt_state: Placed | None
    key: Any
    skipped: Any
    loss_scale: ScaleState | None
    key_impl: str

    @property
    def step_key(self) -> jax.Array:
        """The key of the next step."""
        return jax.random.fold_in(jax.random.wrap_key_data(self.key, impl=self.key_impl), self.step)

    def as_of(self, step: int) -> "TrainState":
        """The same, as after an earlier step, if all since then were skipped.

        A loss scale stays as low as it has fallen.
        """
        counters = jax.device_put((np.int32(step), np.int32(0)), self.step.sharding)
        return dataclasses.replace(self, step=counters[0], skipped=counters[1])
