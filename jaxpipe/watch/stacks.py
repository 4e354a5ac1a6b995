"""Where the stacks of a process go that does not go on: its standard error, and a file.

faulthandler writes from C, also while some thread holds Python's lock, but to one place. So that
place is a pipe into `tee`. What runs after that, when this process has ended, writes `hang.json` if
faulthandler's clock has ended it: nobody else could.
"""

import contextlib
import faulthandler
import os
import shutil
import subprocess
from pathlib import Path

BY_THE_CLOCK = "Timeout ("  # what faulthandler's clock writes first
# The arguments: the stacks, of which byte the first new one is, whereabouts, hang.json.
_AND_THEN = f"""tee -a "$1"
[ -f "$3" ] && [ "$(tail -c "+$2" "$1" | head -c {len(BY_THE_CLOCK)})" = "{BY_THE_CLOCK}" ] &&
  (set -C; cat "$3" > "$4") 2> /dev/null"""
_PATIENCE = 2.0  # seconds for the last words to reach the file


class Stacks:
    """An open place for stacks.

    Args:
      path: of the file, which is appended to. Without `sh` and `tee` it is the only place.
      whereabouts: the file that says what this process does, as long as it does.
      hang: the file to write if this process holds Python's lock for too long; one that is there
        stays.

    Attributes:
      file: its descriptor, for faulthandler.
    """

    def __init__(self, path: Path, whereabouts: Path, hang: Path) -> None:
        self._path, self._tee = path, None
        first = str(1 + (path.stat().st_size if path.exists() else 0))
        try:
            if shutil.which("tee") is None:
                raise FileNotFoundError("tee")
            self._tee = subprocess.Popen(
                ["sh", "-c", _AND_THEN, "sh", str(path), first, str(whereabouts), str(hang)],
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
