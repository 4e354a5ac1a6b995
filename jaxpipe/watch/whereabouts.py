"""A small file that says what a process is doing, for whoever comes after it.

A process that holds Python's lock for ever cannot write down where; so each section is written down
when it begins, as `hang.json` would have it. The file goes when the process leaves; where it stays,
the process did not.
"""

import contextlib
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jaxpipe.processes.stuck import Doing
from jaxpipe.sections import Section

SUFFIX = ".doing.json"
_SIZE = 1024  # bytes, always: a write that replaces all of it leaves nothing of the last one


class Whereabouts:
    """The file of this process.

    Args:
      folder: of these files, all processes'.
      process: which one this is, from 0.
      fixed: what else is to be in it.
    """

    def __init__(self, folder: Path, process: int, fixed: Mapping[str, Any]) -> None:
        self._path, self._fixed = whereabouts_file(folder, process), dict(fixed)
        self._lost = f"process {process} did not go on, and held Python's lock, in"
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)

    def write(self, section: Section, limit: float | None) -> None:
        """Replaces what it says; a full disk keeps nobody from working."""
        facts = self._fixed | dict(
            section=section.name, step=section.step, limit=limit, seconds=limit, time=now(),
            text=f"{self._lost} {section}",
        )  # fmt: skip
        data = json.dumps(facts).encode()[: _SIZE - 1].ljust(_SIZE - 1) + b"\n"
        with contextlib.suppress(OSError):
            os.pwrite(self._file, data, 0)

    def close(self) -> None:
        """The process leaves in good order."""
        with contextlib.suppress(OSError):
            os.close(self._file)
            self._path.unlink()


def whereabouts_file(folder: Path, process: int) -> Path:
    """The file of a process, in the folder of these files."""
    return folder / f"{process}{SUFFIX}"


def last_written(folder: Path, process: int) -> Doing | None:
    """What the file of a process says, if there is one that this machine can see."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        words = json.loads(whereabouts_file(folder, process).read_text(encoding="utf-8"))
        since = datetime.fromisoformat(words["time"])
        seconds = max(0.0, (datetime.now(UTC) - since).total_seconds())
        return Doing(words["section"], words["step"], seconds)
    return None


def now() -> str:
    """The time, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def left_behind(folder: Path) -> list[dict[str, Any]]:
    """What files say whose processes have not left in good order; removes them."""
    found = []
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        with contextlib.suppress(OSError, ValueError):
            found.append(json.loads(path.read_text(encoding="utf-8")))
        with contextlib.suppress(OSError):
            path.unlink()
    return found
