"""What takes metrics, and a group of such sinks of which none can stop the training."""

import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Protocol

_LOG = logging.getLogger(__name__)


class Sink(Protocol):
    """Takes the scalars of a step."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Keeps or shows what is known about a step."""
        ...

    def close(self) -> None:
        """Writes what is pending and lets go of files."""
        ...


class Sinks:
    """Sinks as one. A sink that fails is reported once, then left out; the others go on."""

    def __init__(self, openers: Mapping[str, Callable[[], Sink]]) -> None:
        """Opens them: `openers` has a function for each sink's name."""
        self._open: dict[str, Sink] = {}
        for name, opener in openers.items():
            self._attempt(
                name, lambda name=name, opener=opener: self._open.update({name: opener()})
            )

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Hands the scalars to every sink that still works."""
        for name, sink in list(self._open.items()):
            self._attempt(name, lambda sink=sink: sink.write(step, scalars))

    def close(self) -> None:
        """Closes every sink that still works."""
        for name, sink in list(self._open.items()):
            self._attempt(name, sink.close)
        self._open.clear()

    def _attempt(self, name: str, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # whatever goes wrong with a log, the model is worth more
            failed = self._open.pop(name, None)
            if failed is not None:
                with contextlib.suppress(Exception):
                    failed.close()
            _LOG.warning("%s failed and is off from now on: %s. Training goes on.", name, error)
