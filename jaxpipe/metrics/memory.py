"""The most memory in use so far: on a device or, where devices do not tell, in the process."""

import resource
import sys
from typing import NamedTuple

import jax


class Memory(NamedTuple):
    """A peak of memory.

    Attributes:
      of: `"device"`, the fullest of this process's devices, or `"process"`, the process itself: its
        resident set, as on CPU, where all devices share it.
      bytes: since the process began.
    """

    of: str
    bytes: int


def memory_peak() -> Memory:
    """The most memory that has been in use so far; asks nothing of the devices' queues."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [stat["peak_bytes_in_use"] for stat in stats if "peak_bytes_in_use" in stat]
    if peaks:
        return Memory("device", max(peaks))
    # Bytes on macOS, kilobytes elsewhere: see getrusage(2).
    unit = 1 if sys.platform == "darwin" else 1024
    return Memory("process", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
