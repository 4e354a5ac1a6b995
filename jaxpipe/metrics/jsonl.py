"""Metrics as JSON lines: the record of a run that needs no library to read."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path


class JsonLines:
    """Appends a line per write: `{"step": 10, "time": 1700000000.0, "loss": 2.5}`.

    `time` is in seconds since 1970. Every line is valid JSON: what is no number is null.
    """

    def __init__(self, path: Path, *, resume_step: int = 0) -> None:
        """Opens the file for appending.

        Args:
          path: the file.
          resume_step: the step that the run goes on from. Lines of later steps, which will be
              written again, and a torn last line move to a file beside, `NAME.dropped`.
        """
        _rewind(path, resume_step)
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Appends one line and flushes it."""
        values = {name: _number(value) for name, value in scalars.items()}
        line = json.dumps({"step": step, "time": time.time(), **values}, allow_nan=False)
        self._file.write(line + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _rewind(path: Path, step: int) -> None:
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if _step_of(line) <= step]
    if len(kept) == len(lines):
        return
    with path.with_name(path.name + ".dropped").open("ab") as dropped:
        dropped.writelines(line.rstrip(b"\n") + b"\n" for line in lines if line not in kept)
    # Replaced in one piece: whoever dies here leaves the old file or the new one.
    shorter = path.with_name(path.name + ".new")
    shorter.write_bytes(b"".join(kept))
    shorter.replace(path)


def _step_of(line: bytes) -> float:
    """The line's step; infinite for a line that was not written to its end."""
    try:
        return json.loads(line)["step"] if line.endswith(b"\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf
