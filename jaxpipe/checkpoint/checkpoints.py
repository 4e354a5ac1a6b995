"""The checkpoints of a run: saved in the background, kept, verified, found, loaded anywhere."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxpipe.checkpoint.compare import match
from jaxpipe.checkpoint.contents import Contents, contents_of
from jaxpipe.checkpoint.folder import STATE, Folder
from jaxpipe.checkpoint.load import Reader, load, sources
from jaxpipe.checkpoint.manifest import Manifest, wrong_sums
from jaxpipe.checkpoint.meetings import Meetings
from jaxpipe.checkpoint.retention import Retention
from jaxpipe.checkpoint.writer import Writer
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
        patience: float = 1200.0,
    ) -> None:
        """The folder need not exist.

        Args:
          folder: holds a folder per step.
          keep: how many of the newest stay, at least 2: the newest may turn out to be damaged.
          keep_interval: those of every so many steps stay too.
          keep_best: so many with the lowest metric stay too.
          patience: seconds that a save may take, and that processes wait for one another.

        Raises:
          CheckpointError: for a `keep` below 2, or another number below what makes sense.
        """
        if not patience > 0:
            raise CheckpointError(f"patience: got {patience}, expected seconds, more than 0.")
        self._folder = Folder(Path(folder))
        self._meetings = Meetings(patience)
        retention = Retention(keep, keep_interval, keep_best)
        self._writer = Writer(self._folder, retention, self._meetings, patience)

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
        return self._writer.open()

    def check_room(self, like: PyTree) -> None:
        """Looks whether the disk has room for one more checkpoint.

        Args:
          like: what is to be saved; it may be abstract.

        Raises:
          CheckpointError: there is less; says how much is needed and how much there is.
        """
        self._writer.check_room(contents_of(like))

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
        self._writer.save(step, contents_of(state), dict(metadata or {}) | {"metric": metric})

    def wait(self) -> None:
        """Waits until no save is going on: what was saved is there, for all processes.

        Raises:
          CheckpointError: the storage, or another process, does not answer.
        """
        self._writer.wait()

    def failures(self) -> list[str]:
        """What went wrong with saves since this was asked last."""
        return self._writer.failures()

    def close(self) -> None:
        """Waits for the last save, and lets go of the folder.

        Raises:
          CheckpointError: the last save failed.
        """
        self._writer.close()

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._writer.abandon()

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
        look = lambda: self._meetings.of_first(steps.pop() if steps else -1, "looked for steps")
        while (step := look()) >= 0:
            problems = self.verify(step)
            if not self._meetings.anywhere(bool(problems), f"verified step {step}"):
                return Newest(step, damaged)
            where = self.path(step)
            if self._writer.is_open:
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
          CheckpointError: there is no such checkpoint, or it does not fit; names every misfit. Or
            another process could not read it.
          CorruptCheckpointError: it is damaged.
        """
        self.wait()
        found, problem = None, None
        try:
            found = self._read(step, like, part, partial, cast)
        except Exception as error:
            problem = error
        # Or those that have read it would wait for the others in their first step, without end.
        elsewhere = self._meetings.anywhere(problem is not None, f"read step {step}")
        if problem is not None:
            raise problem
        if elsewhere:
            raise CheckpointError(f"another process could not read {self.path(step)}.")
        return found

    def _read(
        self, step: int, like: PyTree, part: str | None, partial: Sequence[str], cast: bool
    ) -> PyTree:
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


def _check_has_value(contents: Contents, key: str) -> None:
    """Raises unless the state has an array where nothing is read."""
    array, place = contents.members()[key]
    node = contents.nodes[array.members[place].node]
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(node)):
        raise CheckpointError(
            f"{key} is not read, and `like` is abstract there; expected arrays. Give a state as"
            " engine.init makes it."
        )
