"""What a run keeps of itself besides its state: its log, its history, where its time goes."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxpipe.config import RunDirectory
from jaxpipe.metrics import (
    Compilation,
    CompilationTimes,
    Console,
    History,
    LogFile,
    TimeAccount,
    environment,
    heartbeat,
    in_words,
    watched_compilation,
)
from jaxpipe.processes import Processes
from jaxpipe.sections import Section, Sections
from jaxpipe.summary import STEP, StepRecord, write_summary

_USUAL = ("data", "step")  # of which a terminal says nothing
_WORTH_SAYING = 1.0  # seconds of compilation


class Records:
    """What is kept; one for a start of a run, from `recording`.

    Attributes:
      console: shows and logs; what is said through it is in the process's log.
      sections: what the process is doing.
      history: of the run; the first process's.
    """

    def __init__(self, console: Console, sections: Sections, processes: Processes) -> None:
        self.console, self.sections, self.history = LogFile(console), sections, History(None)
        self._processes, self._account = processes, TimeAccount()
        self._folder: Path | None = None  # of the run, where this process writes
        self._ending = "interrupted at once"
        self._compiled, self._times = Compilation.none(), CompilationTimes()
        sections.listen(self._account)
        sections.listen(self._show)

    def note(self, text: str) -> None:
        """Says something once."""
        self.console.note(text)

    def start(self, folder: RunDirectory, step: StepRecord, **facts: Any) -> None:
        """Begins to write into the run's folder, which is there now.

        Args:
          folder: of the run.
          step: of the run, on paper; an earlier start may have measured it already.
          facts: for its history.
        """
        self.console.start(folder.log_file(self._processes.index))
        if self._processes.is_first:
            self._folder = folder.path
            self.history = History(folder.history_file)
            with self._harmless("env.json"):
                folder.keep_environment(environment(self._processes.count))
            known = StepRecord.read(folder.path / STEP)
            if known is None or dataclasses.replace(known, measured=()) != step:
                self.keep_step(step)
        self.history.add("started", resumed=folder.resume, changes=folder.changes, **facts)

    def keep_step(self, step: StepRecord) -> None:
        """Keeps a step for the summary."""
        if self._folder is not None:
            with self._harmless(STEP):
                step.write(self._folder / STEP)
        for words in step.slow_ranks():
            self.note(f"SLOW: {words}")
            self.history.add("slow", rank=words)

    def compiled(self) -> Compilation:
        """What has been compiled since this was asked the last time."""
        before, self._compiled = self._compiled, self._times.read()
        return self._compiled.since(before)

    def say_compiled(self, what: str) -> None:
        """Says what has been compiled since, if that took long, and for what."""
        compiled = self.compiled()
        if compiled.seconds > _WORTH_SAYING:
            self.note(f"{what}: {compiled}")

    def seconds(self) -> Mapping[str, float]:
        """Where the time has gone so far."""
        return self._account.seconds()

    def end(self, ending: str) -> None:
        """Says how the run has ended, if not by an exception."""
        self._ending = ending

    @contextlib.contextmanager
    def _kept(self, interval: float) -> Iterator[None]:
        with (
            contextlib.closing(self.console),
            watched_compilation() as self._times,
            heartbeat(lambda: self.sections.current, self.console.still, interval),
        ):
            problem = None
            try:
                yield
            except Exception as error:
                self._ending, problem = type(error).__name__, str(error)
                raise
            finally:
                self.history.add(
                    "ended", ending=self._ending, problem=problem, seconds=self.seconds()
                )
                self._summarise()

    def _summarise(self) -> None:
        if self._folder is not None:
            with self._harmless("summary.html"):
                self.note(f"summary: {write_summary(self._folder)}")

    @contextlib.contextmanager
    def _harmless(self, what: str) -> Iterator[None]:
        """Whatever goes wrong inside is said, and no more: the run is worth more than a page."""
        try:
            yield
        except Exception as error:
            self.note(f"{what} cannot be written: {type(error).__name__}: {error}")

    def _show(self, section: Section | None) -> None:
        unusual = section is not None and section.name not in _USUAL
        self.console.working(in_words(section) if section and unusual else None)


@contextlib.contextmanager
def recording(
    console: Console, sections: Sections, processes: Processes, interval: float
) -> Iterator[Records]:
    """Records, until the block ends; then the console is closed.

    Args:
      console: what the process shows.
      sections: of its main thread.
      processes: of which this is one.
      interval: seconds between signs of life.
    """
    records = Records(console, sections, processes)
    with records._kept(interval):
        yield records
