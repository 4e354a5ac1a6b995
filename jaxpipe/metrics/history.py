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
    ever taken back. A line that cannot be written is reported, and training goes on.

    Args:
      path: the file; None keeps nothing, as processes other than the first do.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def add(self, event: str, **facts: Any) -> None:
        """Writes down an event with what JSON can hold of it."""
        if self._path is None:
            return
        line = json.dumps({"time": time.time(), "event": event, **facts}, default=str)
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            _LOG.warning("%s cannot be written: %s. Training goes on.", self._path, error)


def read_history(path: Path) -> list[dict[str, Any]]:
    """All events that can be read, oldest first; none without the file."""
    lines: list[dict[str, Any]] = []
    with contextlib.suppress(OSError):
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(line))
    return lines
