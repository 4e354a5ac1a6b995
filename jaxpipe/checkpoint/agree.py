"""What all processes must agree on before they load."""

import jax
import numpy as np
from jax.experimental import multihost_utils


def of_first(value: int) -> int:
    """What process 0 has, on all."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def anywhere(found: bool) -> bool:
    """Whether any process has found it."""
    if jax.process_count() == 1:
        return found
    return bool(np.any(multihost_utils.process_allgather(np.bool_(found))))
