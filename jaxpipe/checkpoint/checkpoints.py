"""The checkpoints of a run: saved in the background, kept, verified, found, loaded anywhere."""

import contextlib
import dataclasses
import shutil
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from jaxpipe.checkpoint import agree
from jaxpipe.checkpoint.compare import match
from jaxpipe.checkpoint.contents import Contents, contents_of
from jaxpipe.checkpoint.folder import STATE, Folder
from jaxpipe.checkpoint.load import Reader, load, sources
from jaxpipe.checkpoint.manifest import Manifest, entries, wrong_sums
from jaxpipe.checkpoint.retention import Retention
from jaxpipe.checkpoint.snapshot import Block, snapshot
from jaxpipe.checkpoint.sums import sums
from jaxpipe.checkpoint.zarr import Saved, SavedHandler
from jaxpipe.errors import CheckpointError, CorruptCheckpointError

PyTree = Any


class Newest(NamedTuple):
    """The newest checkpoint that is sound.

    Attributes:
      step: its step, or None where no save was ever finished.
      damaged: what was found wrong with newer ones, and where these are now.
    """

    step: int | None
    damaged: list[str]


class Checkpoints(contextlib.AbstractContextManager["Checkpoints"]):
    """The checkpoints of a run, in one folder. Of several processes all do the same with it.

    What is saved are layers, by name: it loads into any number of stages, any schedule, partition
    and mesh. Whoever saves first takes the folder's lock.

    >>> import tempfile, jax.numpy as jnp
    >>> with Checkpoints(Path(tempfile.mkdtemp()) / "checkpoints", keep=2) as checkpoints:
    ...     for step in (1, 2, 3):
    ...         checkpoints.save(step, {"weight": jnp.full(4, step)})
    ...     checkpoints.wait()
    ...     checkpoints.steps(), checkpoints.restore(3, {"weight": jnp.zeros(4, int)})
    ([2, 3], {'weight': Array([3, 3, 3, 3], dtype=int32)})
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        keep: int = 2,
        keep_interval: int | None = None,
        keep_best: int = 0,
    ) -> None:
        """The folder need not exist.

        Args:
          folder: holds a folder per step.
          keep: how many of the newest stay, at least 2: the newest may turn out to be damaged.
          keep_interval: those of every so many steps stay too.
          keep_best: so many with the lowest metric stay too.

        Raises:
          CheckpointError: for a `keep` below 2, or an interval or number below what makes sense.
        """
        self._folder = Folder(Path(folder))
        self._retention = Retention(keep, keep_interval, keep_best)
        registry = ocp.type_handlers.create_type_handler_registry((Saved, SavedHandler()))
        handler = ocp.PyTreeCheckpointHandler(
            use_ocdbt=False, use_zarr3=True, type_handler_registry=registry
        )
        self._orbax = ocp.AsyncCheckpointer(
            handler, async_options=ocp.AsyncOptions(create_directories_asynchronously=False)
        )
        self._lock = contextlib.ExitStack()
        self._is_writer = False
        self._thread: threading.Thread | None = None
        self._failures: list[str] = []
        self._last_failure: str | None = None

    @property
    def folder(self) -> Path:
        """Where they are."""
        return self._folder.path

    def path(self, step: int) -> Path:
        """The folder of a step."""
        return self._folder.step(step)

    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, oldest first, sound or not."""
        return self._folder.finished()

    def latest(self) -> int | None:
        """The newest of `steps()`."""
        return max(self.steps(), default=None)

    def open(self) -> list[Path]:
        """Makes the folder, takes its lock, and clears what interrupted saves have left.

        Returns:
          Saves that were never finished.

        Raises:
          CheckpointError: another process writes to it, or it cannot be written.
        """
        if self._is_writer:
            return []
        cleared = []
        if jax.process_index() == 0:
            self._lock.enter_context(self._folder.lock())
            cleared = self._folder.clean()
        self._is_writer = True
        return cleared

    def save(
        self,
        step: int,
        state: PyTree,
        *,
        metric: float | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Saves a state in the background; a step that is there already stays as it is.

        Returns as soon as the state is copied to the host: it may be donated or deleted then. Waits
        for an earlier save that is still going on. A save that fails leaves older checkpoints as
        they were; `failures()` and `close()` tell.

        Args:
          step: the step the state belongs to.
          state: any tree of placed trees and arrays.
          metric: what `keep_best` goes by; lower is better.
          metadata: anything that JSON has, to be found again in `manifest(step).metadata`.

        Raises:
          CheckpointError: the state holds what is no array, or the folder cannot be written to.
        """
        self.open()
        self.wait()
        contents = contents_of(state)
        problem = None
        if jax.process_index() == 0 and step not in self.steps():
            problem = self._not_ready(step, contents)
        if agree.of_first(step in self.steps()):
            return
        if agree.of_first(problem is not None):
            self._failed(step, problem or "process 0 could not begin")
            return
        manifest = Manifest(step, entries(contents), {}, dict(metadata or {}) | {"metric": metric})
        tree = _tree(manifest, snapshot(contents))
        try:
            self._orbax.save(self.path(step) / STATE, args=ocp.args.PyTreeSave(tree))
        except (OSError, ValueError, RuntimeError) as error:
            self._failed(step, str(error))
            return
        self._thread = threading.Thread(target=self._finish, args=(manifest,), name=str(step))
        self._thread.start()

    def _not_ready(self, step: int, contents: Contents) -> str | None:
        """Why a save cannot begin, if so."""
        need = sum(array.num_bytes for array in contents.arrays)
        try:
            free = shutil.disk_usage(self.folder).free
            if free < need:
                return f"it takes {need:,} bytes, and {free:,} are free"
            self.path(step).mkdir(exist_ok=True)
        except OSError as error:
            return str(error)
        return None

    def _finish(self, manifest: Manifest) -> None:
        """The rest of a save, in the background."""
        try:
            self._orbax.wait_until_finished()
            if jax.process_index() == 0:
                folder = self.path(manifest.step)
                dataclasses.replace(manifest, files=sums(folder)).write(folder)
            self._last_failure = None
        except Exception as error:
            self._failed(manifest.step, str(error))
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

    def _failed(self, step: int, problem: str) -> None:
        if jax.process_index() == 0:
            shutil.rmtree(self.path(step), ignore_errors=True)  # room for the next one
        problem = problem.rstrip(".")
        self._last_failure = (
            f"cannot write the checkpoint of step {step} to {self.folder}: {problem}. Older"
            f" checkpoints: {self.steps() or 'none'}."
        )
        self._failures.append(self._last_failure)

    def wait(self) -> None:
        """Waits until no save is going on: what was saved is there, for all processes."""
        if self._thread is None:
            return
        self._thread.join()
        step, self._thread = int(self._thread.name), None
        # Process 0 finishes for all of them, and knows how that went.
        if agree.of_first(self._last_failure is not None) and self._last_failure is None:
            self._failed(step, "process 0 could not finish it")

    def failures(self) -> list[str]:
        """What went wrong with saves since this was asked last."""
        found, self._failures = self._failures, []
        return found

    def close(self) -> None:
        """Waits for the last save, and lets go of the folder.

        Raises:
          CheckpointError: the last save failed.
        """
        self.wait()
        self._lock.close()
        self._is_writer = False
        self._orbax.close()
        if self._last_failure is not None:
            raise CheckpointError(self._last_failure)

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
            return
        with contextlib.suppress(CheckpointError):
            if jax.process_count() == 1:  # others may be gone
                self.wait()
            self._lock.close()

    def manifest(self, step: int) -> Manifest:
        """What a checkpoint consists of; all its files are there.

        Raises:
          CheckpointError: there is no such checkpoint.
          CorruptCheckpointError: it is damaged, so far as can be told without reading it.
        """
        return self._folder.read(step)

    def verify(self, step: int) -> list[str]:
        """Reads a checkpoint, and says what is not as it was written. Processes share the work."""
        try:
            manifest = self._folder.read(step)
        except CorruptCheckpointError as error:
            return [str(error)]
        count, index = jax.process_count(), jax.process_index()
        return wrong_sums(self.path(step), manifest, count, index)

    def newest(self) -> Newest:
        """The newest checkpoint that is sound.

        Damaged ones are moved aside on the way, by whoever has `open`ed the folder to write.

        Raises:
          CheckpointError: there are checkpoints, and none is sound: nobody wants to start afresh
            without being told.
        """
        self.wait()
        damaged, bad = [], []
        steps = sorted(self.steps())
        while (step := agree.of_first(steps.pop() if steps else -1)) >= 0:
            problems = self.verify(step)
            if not agree.anywhere(bool(problems)):
                return Newest(step, damaged)
            where = self.path(step)
            if self._is_writer:
                where = where.with_name(f"{where.name}.bad")
                if jax.process_index() == 0:
                    where = self._folder.move_aside(step)
            bad.append(where)
            first = problems[0] if problems else "another process found it damaged"
            damaged.append(f"step {step} is damaged, and lies in {where}: {first}")
        bad = sorted({*bad, *self._folder.bad()})
        if bad:
            listed = "".join(f"\n  {path}" for path in bad)
            raise CheckpointError(
                f"no checkpoint in {self.folder} is sound:{listed}\nStart anew in another folder"
                " (--resume never), or put back one of these."
            )
        return Newest(None, damaged)

    def restore(
        self,
        step: int,
        like: PyTree,
        *,
        part: str | None = None,
        partial: Sequence[str] = (),
        cast: bool = False,
    ) -> PyTree:
        """Reads a state; each device reads its own layers only.

        Args:
          step: one of `steps()`.
          like: a state of the same layers, as `engine.abstract_state(batch)` gives it, on any mesh;
            the result has its shapes, dtypes and shardings.
          part: what `like` is of the saved state: `"params"` for its parameters alone.
          partial: patterns (`*`, `?`, `[..]`) of names that need not fit: `["opt_state.*"]` keeps
            the optimizer's state that `like` has. It must have arrays there.
          cast: whether floats may become floats of another precision.

        Raises:
          CheckpointError: there is no such checkpoint, or it does not fit; names every misfit.
          CorruptCheckpointError: it is damaged.
        """
        self.wait()
        manifest = self._folder.read(step)
        saved = sources(manifest)
        if part is not None:
            begin = f"{part}."
            saved = {k.removeprefix(begin): v for k, v in saved.items() if k.startswith(begin)}
        contents = contents_of(like)
        found = match(contents, saved, str(self.path(step)), partial=partial, cast=cast)
        for key in contents.members().keys() - found.keys():
            _check_has_value(contents, key)
        return load(contents, found, Reader(self.path(step) / STATE, manifest))


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


def _check_has_value(contents: Contents, key: str) -> None:
    """Raises unless the state has an array where nothing is read."""
    array, place = contents.members()[key]
    node = contents.nodes[array.members[place].node]
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(node)):
        raise CheckpointError(
            f"{key} is not read, and `like` is abstract there; expected arrays. Give a state as"
            " engine.init makes it."
        )
