"""Signals that ask a run to stop: first in good order, then at once."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator

from jaxpipe.processes import INTERRUPTED

# What clusters announce the end of a job with; SLURM's --signal is the user's to choose.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_PATIENCE = 5.0  # seconds for the main thread to end after the second signal
_AS_ONE = 1.0  # seconds in which several count as one: a job's end may reach it by several ways


@contextlib.contextmanager
def stop_signals(patience: float = _PATIENCE) -> Iterator[list[int]]:
    """Within, a first Ctrl-C, SIGTERM or SIGUSR1 asks for an orderly end, a second ends at once.

    The second raises a `KeyboardInterrupt` in the main thread. While that is in a function that is
    not Python's, such as XLA's compiler, nothing can be raised there: then the process just ends.
    For the main thread.

    Args:
      patience: seconds for the main thread to leave the `with` block after the second signal.

    Yields:
      The signals that have come.
    """
    asked: list[int] = []

    def ask(number: int, _: object) -> None:
        asked.append(number)
        if len(asked) > 1:
            raise KeyboardInterrupt
        # A handler may come in the middle of a print, and print must not be entered twice.
        os.write(2, b"\njaxpipe: stopping after this step; once more to stop at once\n")

    with _heard_by_a_thread(patience):
        before = {number: signal.signal(number, ask) for number in SIGNALS}
        try:
            yield asked
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _heard_by_a_thread(patience: float) -> Iterator[None]:
    """A thread hears of signals too, and ends the process where the main thread cannot."""
    left = threading.Event()
    reader, writer = socket.socketpair()

    def listen() -> None:
        count, last = 0, -_AS_ONE
        while data := reader.recv(64):
            if not any(number in SIGNALS for number in data) or time.monotonic() < last + _AS_ONE:
                continue
            count, last = count + 1, time.monotonic()
            if count > 1 and not left.wait(patience):
                os.write(2, b"jaxpipe: ending at once; the newest finished checkpoint stays\n")
                os._exit(INTERRUPTED)

    writer.setblocking(False)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=listen, daemon=True, name="jaxpipe signals")
    thread.start()
    try:
        yield
    finally:
        left.set()
        signal.set_wakeup_fd(before)
        writer.close()
        thread.join()
        reader.close()
