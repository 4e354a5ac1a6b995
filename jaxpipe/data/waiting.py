"""Batches that are waited for: for so long, and no longer."""

import queue
import threading
from collections.abc import Callable, Iterator

from jaxpipe.data.samples import Sample
from jaxpipe.errors import DataTimeoutError

_NOTICE = 0.2  # seconds after which the thread has seen that nobody wants more


def waited_for(
    batches: Callable[[], Iterator[Sample]], patience: float, name: Callable[[int], str]
) -> Iterator[Sample]:
    """The same batches, read by a thread.

    Args:
      batches: makes the iterator that is read.
      patience: seconds to wait for each.
      name: of the n-th of them, counted from 0, for messages.

    Raises:
      DataTimeoutError: one does not come. The thread is left behind; nothing can end it.
    """
    ready: queue.Queue[Sample | Exception | None] = queue.Queue(maxsize=1)
    unwanted = threading.Event()

    def give(found: Sample | Exception | None) -> bool:
        while not unwanted.is_set():
            try:
                ready.put(found, timeout=_NOTICE)
            except queue.Full:
                continue
            return True
        return False

    def read() -> None:
        try:
            for batch in batches():
                if not give(batch):
                    return
            give(None)
        except Exception as error:
            give(error)

    threading.Thread(target=read, daemon=True, name="jaxpipe batches").start()
    count = 0
    try:
        while True:
            try:
                found = ready.get(timeout=patience)
            except queue.Empty:
                raise DataTimeoutError(
                    f"{name(count)} did not come within {patience:g} s: the storage or the loader"
                    " does not answer. See to it, or wait longer by watch.data."
                ) from None
            if found is None:
                return
            if isinstance(found, Exception):
                raise found
            yield found
            count += 1
    finally:
        unwanted.set()
