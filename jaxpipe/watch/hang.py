"""`hang.json`: who did not go on, in which section of its work, since when."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxpipe.watch.stacks import BY_THE_CLOCK
from jaxpipe.watch.whereabouts import left_behind

FILE = "hang.json"
FOLDER = "watch"  # in the folder of a run: stacks, and whereabouts while it goes on


@dataclass(frozen=True)
class Hang:
    """What a process did when it was found that it does not go on.

    Attributes:
      process: which one, from 0.
      section: of its work; None if that is not known.
      step: of training, from 1; None outside of steps.
      seconds: for how long it had been in that section.
      limit: how many seconds it may have; None if another sign gave it away.
      text: how it was found.
      time: when, as ISO 8601.
      stacks: the file with its stacks, within the folder of the run.
      doing: what each process did when last heard of: section, step, seconds.
      facts: what else was to be noted.
    """

    process: int
    section: str | None
    step: int | None
    seconds: float | None
    limit: float | None
    text: str
    time: str
    stacks: str
    doing: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.text} ({self.time}; stacks: {self.stacks})"

    def write(self, folder: Path) -> None:
        """Writes it into the folder of a run; what another process has found before stays."""
        data = json.dumps(dataclasses.asdict(self), indent=1).encode() + b"\n"
        with contextlib.suppress(OSError):  # also that it is there already
            file = os.open(folder / FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            with open(file, "wb") as stream:
                stream.write(data)


def stacks_file(process: int) -> str:
    """Where a process's stacks are, within the folder of the run."""
    return f"{FOLDER}/{process}.stacks"


def last_hang(folder: Path) -> Hang | None:
    """How the last start hung, if it did; clears its traces. For one process, before it watches.

    A process that held Python's lock could not write anything but its stacks: what it did then is
    in the file that said so, where nothing has made that `hang.json` yet.

    Args:
      folder: of the run.
    """
    found = _read(folder / FILE)
    for words in left_behind(folder / FOLDER):
        with contextlib.suppress(OSError, KeyError, TypeError):
            written = (folder / words["stacks"]).read_bytes()[words.pop("stacks_before") :]
            if found is None and written.startswith(BY_THE_CLOCK.encode()):
                found = Hang(**words)
    with contextlib.suppress(OSError):
        (folder / FILE).unlink()
    return found


def _read(path: Path) -> Hang | None:
    with contextlib.suppress(OSError, ValueError, TypeError):
        words = json.loads(path.read_text(encoding="utf-8"))
        return Hang(**{name: word for name, word in words.items() if name != "stacks_before"})
    return None
