"""The folder of a run's checkpoints: which are there, which are sound, which may go.

checkpoints/lock                  held by the process that writes, as long as it lives
            step_00000250/        a checkpoint, if it has a manifest
              MANIFEST.json       what it consists of, written last
              state/              what Orbax wrote
            step_00000200.bad     one that was found to be damaged
            step_00000150.old     one that is being deleted
            step_00000100.unfinished  one that lacks its manifest
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from jaxpipe.checkpoint.manifest import FILE, Manifest, checked_manifest, sync
from jaxpipe.errors import CheckpointError, CorruptCheckpointError

STATE = "state"
_STEP = re.compile(r"step_([0-9]{8,})")
_GONE = re.compile(r"step_[0-9]{8,}\.old")


class Folder:
    """A folder of checkpoints.

    Attributes:
      path: where it is; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    def step(self, step: int) -> Path:
        """The folder of a step."""
        return self.path / f"step_{step:08d}"

    def found(self) -> dict[int, Path]:
        """All folders of steps, finished or not, oldest first; links and other names are none."""
        found = {}
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for path in self.path.iterdir():
                match = _STEP.fullmatch(path.name)
                if match and not path.is_symlink() and path.is_dir():
                    found[int(match[1])] = path
        return dict(sorted(found.items()))

    def finished(self) -> list[int]:
        """Steps whose manifest is there, oldest first; what it says is not looked at."""
        return [step for step, path in self.found().items() if (path / FILE).is_file()]

    def read(self, step: int) -> Manifest:
        """A step's manifest, once all its files are found to be there, of the right sizes.

        Raises:
          CheckpointError: there is no such step, or a newer jaxpipe wrote it.
          CorruptCheckpointError: files are missing or of other sizes, or the manifest is damaged.
        """
        path = self.step(step)
        if step not in self.finished():
            raise CheckpointError(
                f"no checkpoint of step {step} in {self.path}; known: {self.finished() or 'none'}."
            )
        manifest = checked_manifest(path)
        if manifest.step != step:
            raise CorruptCheckpointError(f"{path} holds step {manifest.step}.")
        return manifest

    def bad(self) -> list[Path]:
        """Checkpoints that were moved aside."""
        return sorted(self.path.glob("step_*.bad*"))

    def move_aside(self, step: int) -> Path:
        """Keeps a damaged checkpoint, but under a name that is none."""
        path, number = self.step(step), 1
        aside = path.with_name(f"{path.name}.bad")
        while aside.exists():
            number += 1
            aside = path.with_name(f"{path.name}.bad{number}")
        path.rename(aside)
        sync(self.path)
        return aside

    def delete(self, step: int) -> None:
        """Deletes a checkpoint: whatever interrupts this, no part of one is left as one."""
        path = self.step(step)
        gone = path.with_name(f"{path.name}.old")
        shutil.rmtree(gone, ignore_errors=True)
        path.rename(gone)
        sync(self.path)
        shutil.rmtree(gone, ignore_errors=True)

    def clean(self) -> list[Path]:
        """Clears what interrupted saves and deletions have left behind; only the writer may.

        Returns:
          Saves that were never finished. One that Orbax had finished, and that lacks its manifest
          only, is kept under another name.
        """
        unfinished = [path for path in self.found().values() if not (path / FILE).is_file()]
        gone = [path for path in self.path.iterdir() if _GONE.fullmatch(path.name)]
        for path in [*unfinished, *gone]:
            aside = path.with_name(f"{path.name}.unfinished")
            if path in unfinished and (path / STATE).is_dir() and not aside.exists():
                path.rename(aside)
            else:
                shutil.rmtree(path, ignore_errors=True)
        return unfinished

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Makes the folder, and holds it against other writers as long as this process lives.

        Raises:
          CheckpointError: another process holds it, or it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o640)
        except OSError as error:
            raise CheckpointError(
                f"checkpoints cannot be written to {self.path}: {error}. Choose a folder that this"
                " process may write to."
            ) from None
        with os.fdopen(handle, "r+", encoding="utf-8") as file:
            try:
                # The kernel drops it when the process dies, however it dies.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                who = file.read().strip() or "another process"
                raise CheckpointError(
                    f"{self.path} is being written to by {who}. Stop that run, or choose another"
                    " folder."
                ) from None
            who = dict(host=socket.gethostname(), pid=os.getpid(), since=time.strftime("%F %T"))
            file.seek(0)
            file.truncate()
            file.write(json.dumps(who))
            file.flush()
            yield
