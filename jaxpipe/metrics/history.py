"""What has happened to a run, a JSON line each: starts, resumes, rollbacks, endings."""

import contextlib
import json
import logging
import time
from pathlib import Path
from typing import Any

_LOG = logging.getLogger(__name__)


class History:
    """Appends to a file: `{"time": 1700000000.0, "event": "started", ...}`.

    `time` is in seconds since 1970. Unlike metrics, which a resumed run writes again, nothing is
    ever taken back. What cannot be written is reported once, and training goes on.

    Args:
      path: the file; None keeps nothing, as processes other than the first do.
    """

    def __init__(self, path: Path | None) -> None:
        self._path, self._has_failed = path, False

    def add(self, event: str, **facts: Any) -> None:
        """Writes down an event with what JSON can hold of it."""
        if self._path is None:
            return
        line = json.dumps({"time": time.time(), "event": event, **facts}, default=str)
        torn = "\n" * self._has_failed  # a line that was cut ends before the next one
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{torn}{line}\n")
        except OSError as error:
            if not self._has_failed:
                _LOG.warning("%s cannot be written: %s. Training goes on.", self._path, error)
            self._has_failed = True


def read_history(path: Path) -> list[dict[str, Any]]:
    """All events that can be read, oldest first; none without the file."""
    lines: list[dict[str, Any]] = []
    with contextlib.suppress(OSError):
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(line))
    return lines
