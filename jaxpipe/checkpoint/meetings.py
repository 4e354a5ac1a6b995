"""Where all processes meet around a checkpoint, and what they must agree on there."""

import itertools
import re

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from jaxpipe.errors import CheckpointError
from jaxpipe.processes.hub import listed

_TEXT = 4096  # bytes that are passed on of a text
_numbers = itertools.count()  # all processes meet in the same order, and no meeting has two names


class Meetings:
    """All processes, each of which waits for the others, but not for ever.

    A collective alone would: a process that is stuck in a file system holds up all others, and none
    of them would say so.

    Args:
      patience: seconds to wait for the others.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience

    def meet(self, why: str) -> None:
        """Waits until all processes are here.

        Args:
          why: what each has done when it comes here, as in `"read the checkpoint"`.

        Raises:
          CheckpointError: some have not come in time; says which.
        """
        wait = multihost.get_barrier_sync_fn()
        if wait is None:
            return
        try:
            key = f"jaxpipe checkpoint {next(_numbers)}"
            wait(key=key, timeout_ms=int(self._patience * 1000))
        except jax.errors.JaxRuntimeError as error:
            who = missing(str(error)) or "a process"
            raise CheckpointError(
                f"{who} has not {why} within {self._patience:g} s; expected all"
                f" {jax.process_count()} to. Look at its storage and at what it does"
                f" (process {jax.process_index()} has waited for it)."
            ) from error

    def of_first(self, value: int, why: str) -> int:
        """What process 0 has, on all; errors as `meet`."""
        if jax.process_count() == 1:
            return value
        self.meet(why)
        return int(multihost_utils.broadcast_one_to_all(np.int32(value)))

    def text_of_first(self, text: str, why: str) -> str:
        """The same of a text, or of its beginning."""
        if jax.process_count() == 1:
            return text
        self.meet(why)
        data = np.frombuffer(text.encode()[:_TEXT].ljust(_TEXT, b"\0"), np.uint8)
        found = np.asarray(multihost_utils.broadcast_one_to_all(data), np.uint8)
        return found.tobytes().rstrip(b"\0").decode(errors="ignore")

    def anywhere(self, found: bool, why: str) -> bool:
        """Whether any process has found it; errors as `meet`."""
        if jax.process_count() == 1:
            return found
        self.meet(why)
        return bool(np.any(multihost_utils.process_allgather(np.bool_(found))))


def missing(text: str) -> str:
    """Whom the coordination service has missed, by what it says.

    >>> missing("... Some timed out task names:\\n3\\n1\\n\\nRPC: /Barrier")
    'processes 1, 3'
    """
    _, _, names = text.partition("timed out task names:\n")
    found = {int(number) for number in re.findall(r"(\d+)$", names.split("\n\n")[0], re.MULTILINE)}
    return listed(sorted(found)) if found else ""
