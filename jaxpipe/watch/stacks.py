"""Where the stacks of a process go that does not go on: its standard error, and a file.

faulthandler writes from C, also while some thread holds Python's lock, but to one place. So that
place is a pipe into `tee`.
"""

import contextlib
import faulthandler
import os
import subprocess
from pathlib import Path

_PATIENCE = 2.0  # seconds for the last words to reach the file


class Stacks:
    """An open place for stacks.

    Args:
      path: of the file, which is appended to. Without `tee` it is the only place.

    Attributes:
      file: its descriptor, for faulthandler.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._tee = path, None
        try:
            self._tee = subprocess.Popen(
                ["tee", "-a", str(path)],
                stdin=subprocess.PIPE,
                stdout=2,
                start_new_session=True,  # Ctrl-C is for Python
                bufsize=0,
            )
        except OSError:
            self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        else:
            self.file = self._tee.stdin.fileno()  # pyright: ignore[reportOptionalMemberAccess]

    def write(self, title: str) -> None:
        """Writes the stacks of all threads, under a title."""
        with contextlib.suppress(OSError):
            os.write(self.file, f"{title}\n".encode())
            faulthandler.dump_traceback(self.file, all_threads=True)

    def close(self) -> None:
        """Waits until all is written; a file without a word goes."""
        if self._tee is None:
            os.close(self.file)
        else:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                self._tee.communicate(timeout=_PATIENCE)
        with contextlib.suppress(OSError):
            if not self._path.stat().st_size:
                self._path.unlink()
