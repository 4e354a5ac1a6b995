"""A watchdog: whatever takes longer than it may is written down, and ends all processes.

Two clocks run beside the main thread. A thread of Python's looks every now and then; it can say
what was going on and tell the other processes. Where some thread never lets go of Python's lock, it
cannot run: faulthandler's thread, in C, then writes the stacks and ends the process a little later.
Among several processes it does so as soon as the others find this one silent: they end then, and
without process 0 JAX would abort this one.
"""

import contextlib
import faulthandler
import math
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxpipe.processes import ALONE, Processes
from jaxpipe.processes.stuck import Doing, Stuck
from jaxpipe.sections import Section, Sections
from jaxpipe.watch.hang import FILE, FOLDER, Hang, stacks_file
from jaxpipe.watch.stacks import Stacks
from jaxpipe.watch.whereabouts import Whereabouts, last_written, now, whereabouts_file

_GRACE = 5.0  # seconds that C's clock leaves to Python's
_SPARE = 0.05  # share of a time-out by which C's clock may be late, and is not set anew for that
_SILENT = 1.5  # seconds that C's clock leaves to the others, who notice silence too
_LOOKS = 20  # that the shortest time-out is divided by
_SELDOM, _OFTEN = 1.0, 0.02  # seconds between two looks


class _Watched(NamedTuple):
    """A section with a time-out."""

    section: Section
    limit: float
    deadline: float  # of time.monotonic

    @property
    def end(self) -> float:
        """When C's clock may end the process, at the earliest."""
        return self.deadline + _GRACE

    @property
    def spare(self) -> float:
        """Seconds by which it may be later."""
        return _SPARE * self.limit


class Watchdog(contextlib.AbstractContextManager["Watchdog"]):
    """Ends all processes, with exit code 1, when one of them does not leave a section in time.

    Before that it writes `hang.json` into `folder`, and the stacks of all threads to standard error
    and into `folder`, in each process. The time of a section counts from when it was entered, or
    come back to; that of one within it is its own. Where `faulthandler` is not enabled, stacks are
    written after a crash too. It has but one timer, so there is one watchdog at a time.

    Args:
      sections: which the main thread enters.
      limits: seconds by the name of a section; those without, or with None, may take for ever.
      folder: there already.
      processes: all that end together.
      facts: put into `hang.json`.

    >>> import tempfile
    >>> sections = Sections()
    >>> with Watchdog(sections, {"step": 600.0}, Path(tempfile.mkdtemp())):
    ...     with sections.enter("step", step=1):
    ...         pass
    """

    def __init__(
        self,
        sections: Sections,
        limits: Mapping[str, float | None],
        folder: Path,
        *,
        processes: Processes = ALONE,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self._sections, self._folder, self._processes = sections, folder, processes
        self._limits = {name: limit for name, limit in limits.items() if limit is not None}
        self._facts, self._index = dict(facts or {}), processes.index
        self._watched: _Watched | None = None
        self._since = time.monotonic()  # when the current section was entered or come back to
        self._over, self._guard = threading.Event(), threading.Lock()
        self._setting = threading.Lock()  # of C's clock
        self._end: float | None = None  # when it ends the process, of time.monotonic
        self._silence = processes.heartbeat
        self._heard = -math.inf  # when it was last set anew because Python runs
        looks = min(self._limits.values(), default=_SELDOM) / _LOOKS
        self._interval = max(_OFTEN, min(_SELDOM, looks))

    def __enter__(self) -> "Watchdog":
        (self._folder / FOLDER).mkdir(exist_ok=True)
        path = self._folder / stacks_file(self._index)
        before = path.stat().st_size if path.exists() else 0
        whereabouts = whereabouts_file(self._folder / FOLDER, self._index)
        self._stacks = Stacks(path, whereabouts, self._folder / FILE)
        fixed = dict(
            process=self._index, stacks=stacks_file(self._index), stacks_before=before,
            facts=self._facts,
        )  # fmt: skip
        # JAX aborts where the coordinator is gone: then, too, the stacks are worth having.
        self._enabled = not faulthandler.is_enabled()
        if self._enabled:
            faulthandler.enable(self._stacks.file)
        self._whereabouts = Whereabouts(self._folder / FOLDER, self._index, fixed)
        self._processes.witnessed(self)
        self._sections.listen(self._changed)
        self._changed(self._sections.current)
        self._thread = threading.Thread(target=self._look, daemon=True, name="jaxpipe watchdog")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._guard:  # not while it ends everything
            self._over.set()
            with self._setting:
                faulthandler.cancel_dump_traceback_later()
        self._thread.join()
        if self._enabled:
            faulthandler.disable()
        self._processes.witnessed(None)
        self._whereabouts.close()
        self._stacks.close()
        with contextlib.suppress(OSError):  # others are still there, or have left something
            (self._folder / FOLDER).rmdir()

    def doing(self) -> Doing | None:
        """What the main thread is doing."""
        section = self._sections.current
        return section and Doing(section.name, section.step, time.monotonic() - self._since)

    def found(self, stuck: Stuck) -> None:
        """Writes down that a process, this or another one, does not go on."""
        with self._setting:  # another clock runs now
            self._over.set()
        did = self._did(stuck)
        all_did = {str(index): doing._asdict() for index, doing in stuck.doing.items()}
        Hang(
            stuck.process,
            did and did.section,
            did and did.step,
            did and round(did.seconds, 3),
            self._limits.get(did.section) if did else None,
            stuck.text,
            now(),
            stacks_file(stuck.process),
            all_did,
            self._facts,
        ).write(self._folder)
        self._stacks.write(f"process {self._index}, {now()}: {stuck.text}")
        self._stacks.close()
        self._whereabouts.close()

    def _did(self, stuck: Stuck) -> Doing | None:
        """What the process did that is stuck: by itself, or its file; or when last heard of."""
        if stuck.process == self._index:
            return self.doing()
        return last_written(self._folder / FOLDER, stuck.process) or stuck.doing.get(stuck.process)

    def _changed(self, section: Section | None) -> None:
        """The main thread enters a section, or comes back to it."""
        if self._over.is_set():
            return
        self._since = began = time.monotonic()
        limit = section and self._limits.get(section.name)
        if section is not None:
            self._whereabouts.write(section, limit)
        if section is None or limit is None:
            self._watched = None
            if section is not None:  # between sections that is left to `_look`
                self._set_clock(None)
            return
        self._watched = watched = _Watched(section, limit, began + limit)
        # To set C's clock starts a thread and waits for another one, and most sections are short:
        # so only if it would strike too early. Where it is set for too late, `_look` sees to that.
        if self._end is None or self._end < watched.end:
            self._set_clock(watched)

    def _set_clock(self, watched: _Watched | None) -> None:
        """Lets C's clock end the process after that section's time, or not at all."""
        with self._setting:
            if self._over.is_set():
                return
            self._end = None if watched is None else watched.end + watched.spare
            self._arm()

    def _arm(self) -> None:
        """Sets C's clock to what comes first: the section's end, or too long a silence."""
        self._heard = heard = time.monotonic()
        faulthandler.cancel_dump_traceback_later()
        silent = math.inf if self._silence is None else heard + self._silence + _SILENT
        end = silent if self._end is None else min(silent, self._end)
        if end < math.inf:
            seconds = max(_OFTEN, end - heard)
            faulthandler.dump_traceback_later(seconds, exit=True, file=self._stacks.file)

    def _say_it_runs(self) -> None:
        """Lets C's clock know that Python does."""
        if self._silence is not None and time.monotonic() >= self._heard + _SELDOM:
            with self._setting:
                # As the process ends, that clock has something else to see to.
                if not (self._over.is_set() or self._processes.ending):
                    self._arm()

    def _look(self) -> None:
        while not self._over.wait(self._interval):
            self._say_it_runs()
            watched, end = self._watched, self._end
            if watched is None:
                if end is not None:
                    self._set_clock(None)
                continue
            if end is None or end > watched.end + 2 * watched.spare:
                self._set_clock(watched)
            if time.monotonic() < watched.deadline:
                continue
            with self._guard:
                if watched is not self._watched or self._over.is_set():
                    continue
                self._processes.end_stuck(
                    f"does not go on: {watched.limit:g} s in {watched.section}, which is as long as"
                    " it may take",
                    self,
                )
