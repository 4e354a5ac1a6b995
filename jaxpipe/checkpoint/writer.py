"""Writes checkpoints in the background, one after the other, and deletes those that may go."""

import contextlib
import dataclasses
import itertools
import math
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from jaxpipe.checkpoint.contents import Contents
from jaxpipe.checkpoint.folder import STATE, Folder
from jaxpipe.checkpoint.manifest import Manifest, entries
from jaxpipe.checkpoint.meetings import Meetings, missing
from jaxpipe.checkpoint.retention import Retention
from jaxpipe.checkpoint.snapshot import Block, snapshot
from jaxpipe.checkpoint.sums import sums
from jaxpipe.checkpoint.zarr import Saved, SavedHandler
from jaxpipe.errors import CheckpointError

_numbers = itertools.count()  # the same for the same save in all processes


class _Writing(NamedTuple):
    """A save that was begun.

    Attributes:
      step: of its state.
      thread: that writes it; none where it could not begin.
    """

    step: int
    thread: threading.Thread | None


class Writer:
    """Writes into a folder of checkpoints. Of several processes all do the same with it.

    Process 0 finishes what all have written, and knows how it went; the others hear of that when
    all `wait`.

    Args:
      folder: of the checkpoints.
      retention: which stay.
      meetings: of all processes.
      patience: seconds that a save may take.
    """

    def __init__(
        self, folder: Folder, retention: Retention, meetings: Meetings, patience: float
    ) -> None:
        self._folder, self._retention = folder, retention
        self._meetings, self._patience = meetings, patience
        self._lock = contextlib.ExitStack()
        self._writing: _Writing | None = None
        self._failures: list[str] = []
        self._last_failure: str | None = None
        self.is_open = False

    def open(self) -> list[Path]:
        """Takes the folder's lock, and clears what interrupted saves have left; gives these."""
        if self.is_open:
            return []
        cleared, problem = [], ""
        if jax.process_index() == 0:
            try:
                self._lock.enter_context(self._folder.lock())
                cleared = self._folder.clean()
            except CheckpointError as error:
                problem = str(error)
        if problem := self._meetings.text_of_first(problem, "opened the folder of checkpoints"):
            raise CheckpointError(problem)
        self.is_open = True
        return cleared

    def check_room(self, contents: Contents) -> None:
        """Raises a CheckpointError unless the disk has room for one more checkpoint."""
        problem = ""
        if jax.process_index() == 0:
            problem = self._lacks(contents)
        if problem := self._meetings.text_of_first(problem, "looked for room"):
            raise CheckpointError(
                f"there is no room for a checkpoint in {self._folder.path}: {problem}. Make room,"
                " or choose another folder."
            )

    def save(self, step: int, contents: Contents, metadata: Mapping[str, Any]) -> None:
        """Begins to save; returns once the state is copied to the host."""
        self.open()
        self.wait()
        why = f"begun to save step {step}"
        if self._meetings.of_first(step in self._folder.finished(), why):
            return
        problem = ""
        if jax.process_index() == 0:
            problem = self._not_ready(step, contents)
        self._writing = _Writing(step, None)
        if problem := self._meetings.text_of_first(problem, why):
            self._failed(step, problem)
            return
        manifest = Manifest(step, entries(contents), {}, dict(metadata))
        tree = _tree(manifest, snapshot(contents))
        orbax = _checkpointer(self._patience)
        try:
            orbax.save(self._folder.step(step) / STATE, args=ocp.args.PyTreeSave(tree))
        except (OSError, ValueError, RuntimeError) as error:
            self._failed(step, self._reason(error))
            return
        name = f"jaxpipe checkpoint {step}"
        thread = threading.Thread(target=self._finish, args=(manifest, orbax), name=name)
        self._writing = _Writing(step, thread)
        thread.start()

    def _not_ready(self, step: int, contents: Contents) -> str:
        """Why a save cannot begin, if so."""
        try:
            if problem := self._lacks(contents):
                return problem
            self._folder.step(step).mkdir(exist_ok=True)
        except OSError as error:
            return str(error)
        return ""

    def _lacks(self, contents: Contents) -> str:
        """How much room is missing on the disk, if any is."""
        need = sum(array.num_bytes for array in contents.arrays)
        free = shutil.disk_usage(self._folder.path).free
        return f"it takes {need:,} bytes, and {free:,} are free" if free < need else ""

    def _finish(self, manifest: Manifest, orbax: ocp.AsyncCheckpointer) -> None:
        """The rest of a save, in the background."""
        try:
            orbax.close()  # once all is written
            if jax.process_index() == 0:
                folder = self._folder.step(manifest.step)
                dataclasses.replace(manifest, files=sums(folder)).write(folder)
            self._last_failure = None
        except Exception as error:
            self._failed(manifest.step, self._reason(error))
        else:
            self._delete_old(manifest.step)

    def _delete_old(self, newest: int) -> None:
        """Deletes what need not stay, now that this step is there."""
        if jax.process_index() != 0:
            return
        for step in self._retention.superfluous(self._folder, newest):
            try:
                self._folder.delete(step)
            except OSError as error:
                self._failures.append(f"cannot delete the old checkpoint of step {step}: {error}")

    def _reason(self, error: Exception) -> str:
        """What made a save fail."""
        if isinstance(error, TimeoutError):
            who = missing(str(error.__cause__)) or f"process {jax.process_index()}"
            return f"{who} did not finish its part within {self._patience:g} s"
        return str(error)

    def _failed(self, step: int, problem: str) -> None:
        if jax.process_index() != 0:
            return
        shutil.rmtree(self._folder.step(step), ignore_errors=True)  # room for the next one
        problem = problem.rstrip(".")
        self._last_failure = (
            f"cannot write the checkpoint of step {step} to {self._folder.path}: {problem}. Older"
            f" checkpoints: {self._folder.finished() or 'none'}."
        )
        self._failures.append(self._last_failure)

    def wait(self) -> None:
        """Waits until no save is going on, and all processes know how it went."""
        if self._writing is None:
            return
        step, thread = self._writing
        if thread is not None:
            limit = 2 * self._patience  # Orbax gives up before, if it can, and says who is late
            thread.join(limit)
            if thread.is_alive():
                raise CheckpointError(
                    f"the checkpoint of step {step} is not written after {limit:g} s:"
                    f" {self._folder.path} does not answer."
                )
        self._writing = None
        why = f"finished the checkpoint of step {step}"
        told = self._meetings.text_of_first(self._last_failure or "", why)
        if jax.process_index() != 0:
            self._last_failure = told or None
            self._failures += [told] * bool(told)

    def failures(self) -> list[str]:
        """What went wrong since this was asked last."""
        found, self._failures = self._failures, []
        return found

    def close(self) -> None:
        """Waits, and lets go of the folder; raises a CheckpointError if the last save failed."""
        self.wait()
        self._lock.close()
        self.is_open = False
        if self._last_failure is not None:
            raise CheckpointError(self._last_failure)

    def abandon(self) -> None:
        """Lets go of the folder after an exception."""
        with contextlib.suppress(CheckpointError):
            if jax.process_count() == 1:  # others may be gone
                self.wait()
        self._lock.close()


def _checkpointer(patience: float) -> ocp.AsyncCheckpointer:
    """For one save: after a time-out, Orbax's next barriers of the same name fail too."""
    registry = ocp.type_handlers.create_type_handler_registry((Saved, SavedHandler()))
    handler = ocp.PyTreeCheckpointHandler(
        use_ocdbt=False, use_zarr3=True, type_handler_registry=registry
    )
    return ocp.AsyncCheckpointer(
        handler,
        async_options=ocp.AsyncOptions(
            timeout_secs=math.ceil(patience), create_directories_asynchronously=False
        ),
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            barrier_sync_key_prefix=f"jaxpipe{next(_numbers)}"
        ),
    )


def _tree(manifest: Manifest, blocks: dict[str, list[Block]]) -> dict[str, Any]:
    """What Orbax is given: dicts within dicts, by the words of names."""
    tree: dict[str, Any] = {}
    for name, entry in manifest.arrays.items():
        *outer, last = name.split(".")
        inside = tree
        for word in outer:
            inside = inside.setdefault(word, {})
        inside[last] = Saved(entry.stored(name), blocks.pop(name))
    return tree
