"""Exceptions that have ended a run, so that it is not started again and again for nothing."""

import contextlib
import hashlib
import json
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxpipe.errors import Diverged, JaxpipeError
from jaxpipe.watch import Hang

FILE = "crashes.jsonl"
IN_A_ROW = 3  # starts


class CrashLoop(JaxpipeError):
    """A run that has ended in the same way several times, and would do so again."""

    exit_code = 3


class Crashes:
    """What has ended a run's starts: a line each, in a file of its folder.

    Two starts end alike if exceptions of one type end them in the same step, and neither the
    configuration nor the code has changed in between.

    Args:
      folder: of the run.
      facts: the configuration and the code, by name.
      process: which one this is, from 0. All of them read before the first one writes.

    Attributes:
      step: that is being made.
      facts: a hash of them.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any], process: int = 0) -> None:
        self._path, self._process = folder / FILE, process
        self.facts = hashlib.sha256(json.dumps(dict(facts), default=str).encode()).hexdigest()[:16]
        self._earlier = self._read()
        self._start = 1 + max((line["start"] for line in self._earlier), default=0)
        self.step = 0

    def check(self) -> None:
        """Raises a CrashLoop if the last starts have ended alike."""
        last = self._earlier[-1:]
        if last and self._alike(last[0], self._earlier) >= IN_A_ROW:
            self._refuse(last[0])

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Writes down what ends the block, if that is an exception nobody has foreseen, or
        a Diverged.

        Raises:
          CrashLoop: instead of an exception that has ended the last starts too.
        """
        try:
            yield
        except Exception as error:
            # A mistake costs little to repeat; steps that end in the same way do not.
            if isinstance(error, JaxpipeError) and not isinstance(error, Diverged):
                raise
            line = {
                "process": self._process,
                "step": self.step,
                "type": type(error).__name__,
                "facts": self.facts,
                "error": str(error),
                "traceback": traceback.format_exc(),
            }
            self._write(line)
            if self._alike(line, [*self._earlier, line]) >= IN_A_ROW:
                self._refuse(line, error)
            raise

    def hung(self, hang: Hang) -> None:
        """Writes down that the last start did not go on, which it could not do itself."""
        line = {
            "process": hang.process,
            "step": hang.step or 0,
            "type": f"a hang in {hang.section}",
            "facts": hang.facts.get("facts"),
            "error": str(hang),
        }
        self._write(line)

    def _write(self, line: dict[str, Any]) -> None:
        line["start"] = self._start
        with contextlib.suppress(OSError), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _alike(self, last: Mapping[str, Any], lines: list[dict[str, Any]]) -> int:
        """How many starts in a row have ended as the last one has."""
        same = lambda line: all(line[key] == last[key] for key in ("step", "type"))
        starts: dict[int, bool] = {}
        for line in lines:
            here = same(line) and line["facts"] == self.facts
            starts[line["start"]] = starts.get(line["start"], False) or here
        count = 0
        for start in sorted(starts, reverse=True):
            if not starts[start]:
                break
            count += 1
        return count

    def _refuse(self, line: Mapping[str, Any], error: Exception | None = None) -> None:
        raise CrashLoop(
            f"the last {IN_A_ROW} starts have all ended in step {line['step']} with"
            f" {line['type']}: {line['error']}\nNothing has changed since the first of them. Mend"
            f" the cause (tracebacks: {self._path}); to try once more as it is, delete that file."
        ) from error

    def _read(self) -> list[dict[str, Any]]:
        """All lines that can be read; a disk may have been full."""
        lines = []
        with contextlib.suppress(OSError):
            for line in self._path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError):
                    lines.append(json.loads(line))
        return lines
