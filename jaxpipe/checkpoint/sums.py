"""What the files of a checkpoint hold, as the processes say that wrote them."""

import json
import time
from pathlib import Path
from typing import Any

import jax

from jaxpipe.checkpoint.folder import STATE
from jaxpipe.checkpoint.manifest import sync
from jaxpipe.checkpoint.zarr import SUMS, FileSum
from jaxpipe.errors import CheckpointError

_PATIENCE = 30  # seconds until what a process has written is seen by another


def sums(folder: Path) -> dict[str, FileSum]:
    """What all files of a checkpoint hold, as each process has found what it wrote.

    Raises:
      CheckpointError: a process could not write its part.
    """
    state, files = folder / STATE, {}
    for index in range(jax.process_count()):
        note = _note(state / SUMS / f"{index}.json")
        if note["problem"] is not None:
            raise CheckpointError(f"process {index}: {note['problem']}")
        files |= {f"{STATE}/{name}": FileSum(*found) for name, found in note["files"].items()}
    for path in sorted(state.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            sync(path)  # TensorStore has its files reach the disk, but not their names
        elif name not in files:  # what Orbax adds
            files[name] = FileSum.of(path)
            sync(path)
    return files


def _note(path: Path) -> dict[str, Any]:
    """What a process says of its part; some file systems show it a little later."""
    deadline = time.monotonic() + (_PATIENCE if jax.process_count() > 1 else 0)
    while True:
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            if time.monotonic() > deadline:
                return {"problem": "did not finish its part", "files": {}}
            time.sleep(0.1)
