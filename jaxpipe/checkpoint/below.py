"""The checkpoints that a path leads to: a run's folder, that of its checkpoints, or one itself."""

import re
from collections.abc import Iterator
from pathlib import Path

from jaxpipe.checkpoint.manifest import FILE
from jaxpipe.errors import CheckpointError

_STEP = re.compile(r"step_([0-9]{8,})")


def checkpoints_below(path: Path) -> list[Path]:
    """The checkpoint that a path is, or those in a run's folder or in its `checkpoints/`.

    Args:
      path: what is looked at.

    Returns:
      Folders, oldest first, whole or not.

    Raises:
      CheckpointError: there are none.
    """
    if _STEP.fullmatch(path.absolute().name):
        return [path]
    found = sorted(_steps(path)) or sorted(_steps(path / "checkpoints"))
    if not found:
        raise CheckpointError(
            f"{path} is no checkpoint, and there is none below it; expected a folder named"
            " step_00000250, say, or one with such folders."
        )
    return found


def newest_below(path: Path) -> Path:
    """The newest of these."""
    return checkpoints_below(path)[-1]


def checkpoint_below(path: Path, step: int | None = None) -> Path:
    """One of these whose save was finished: that of a step, or the newest.

    Raises:
      CheckpointError: there is none.
    """
    found = {_step_of(one): one for one in checkpoints_below(path) if (one / FILE).is_file()}
    if not found:
        raise CheckpointError(f"no checkpoint in {path} was ever finished.")
    if step is not None and step not in found:
        raise CheckpointError(f"no checkpoint of step {step} in {path}; known: {sorted(found)}.")
    return found[max(found) if step is None else step]


def _steps(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from (path for path in folder.iterdir() if _STEP.fullmatch(path.name))


def _step_of(path: Path) -> int:
    return int(path.absolute().name.removeprefix("step_"))
