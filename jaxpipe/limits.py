"""Limits of a step's metrics: where one is above its own, the step changes nothing."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxpipe.errors import OptimizerError
from jaxpipe.spec import is_traced

LIMITED = ("loss", "grad_norm")
"""Metrics that may have a limit: they are known before the optimizer changes anything."""


def place_limits(limits: Mapping[str, Any], mesh: Mesh) -> dict[str, Any]:
    """Float32 scalars that every device has; traced ones stay as they are.

    Args:
      limits: by the metric's name; all processes give the same.
      mesh: of the step.

    Raises:
      OptimizerError: a metric has none.
    """
    if unknown := sorted(set(limits) - set(LIMITED)):
        raise OptimizerError(f"got limits of {unknown}; expected some of {list(LIMITED)}.")
    everywhere = NamedSharding(mesh, PartitionSpec())
    # Not device_put, with which processes would wait for each other, to compare what they give.
    put = lambda x: jax.make_array_from_callback(
        (), everywhere, lambda _: np.asarray(x, np.float32)
    )
    return {name: x if is_traced(x) else put(x) for name, x in limits.items()}


def within(metrics: Mapping[str, jax.Array], limits: Mapping[str, Any] | None) -> jax.Array | bool:
    """Whether no metric is above its limit; in float32.

    Args:
      metrics: scalars.
      limits: scalars, by the name of the metric; None: there are none.
    """
    found: jax.Array | bool = True
    for name, limit in (limits or {}).items():
        found &= metrics[name].astype(jnp.float32) <= limit
    return found
