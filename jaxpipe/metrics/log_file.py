"""A console that also keeps what it shows: each process has a log of its own."""

import contextlib
import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from jaxpipe.metrics.console import Console, describe


class LogFile:
    """Hands everything on to another console, and writes it to a file with the time of day.

    Until the file is opened, lines wait in memory. Warnings of Python's `logging`, of any library,
    are kept too while it is open, and shown if nobody else shows them. A file that cannot be
    written stops nothing: that is shown once, and what is said is shown as before.

    Args:
      shown: where people look; `NoConsole()` where nobody does.
    """

    def __init__(self, shown: Console) -> None:
        self._shown, self._waiting = shown, list[str]()
        self._file: TextIO | None = None
        self._path: Path | None = None
        self._is_over = False
        self._warnings = _Warnings(self)
        self._writing = threading.Lock()

    def start(self, path: Path) -> None:
        """Goes on writing at the end of a file, in a folder that is made if need be."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a", encoding="utf-8")
        except OSError as error:
            self._shown.note(f"no log: {path} cannot be written: {error}")
            self._end()
            return
        with self._writing:
            self._file, self._path = file, path
            waiting, self._waiting = self._waiting, []
            for line in waiting:
                self._write(line)
        logging.getLogger().addHandler(self._warnings)

    def note(self, text: str) -> None:
        """Shows text, and keeps it."""
        self.keep(text)
        self._shown.note(text)

    def keep(self, text: str) -> None:
        """Writes text to the file alone."""
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        with self._writing:
            for line in text.splitlines():
                self._write(f"{now}  {line}\n" if line else "\n")

    def advance(self, step: int, loss: float) -> None:
        """Says that a step is done."""
        self._shown.advance(step, loss)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Shows the metrics of a step, and keeps what people watch of them."""
        self.keep(f"step {step}  {describe(scalars)}")
        self._shown.write(step, scalars)

    def working(self, what: str | None) -> None:
        """Says what begins."""
        self._shown.working(what)

    def still(self, what: str, seconds: float) -> None:
        """Shows and keeps a sign of life."""
        self.keep(f"still {what}, for {seconds:.0f} s")
        self._shown.still(what, seconds)

    def close(self) -> None:
        """Closes the file, and the console that is shown."""
        logging.getLogger().removeHandler(self._warnings)
        self._end()
        self._shown.close()

    def _end(self) -> None:
        with self._writing:
            file, self._file, self._is_over = self._file, None, True
            self._waiting.clear()
        with contextlib.suppress(OSError):
            if file is not None:
                file.close()

    def _write(self, line: str) -> None:
        """With the lock held."""
        if self._is_over:
            return
        if self._file is None:
            self._waiting.append(line)
            return
        try:
            self._file.write(line)
            self._file.flush()
        except (OSError, ValueError) as error:  # a full disk: the run is worth more than its log
            self._is_over = True
            self._shown.note(f"{self._path} cannot be written: {error}. Training goes on without.")


class _Warnings(logging.Handler):
    """Takes what Python's logging warns of to a log, and shows what no other handler shows."""

    def __init__(self, log: LogFile) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        text = f"{record.levelname.lower()}: {record.getMessage()}"
        alone = logging.getLogger().handlers == [self]
        (self._log.note if alone else self._log.keep)(text)
