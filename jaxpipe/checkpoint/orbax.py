"""Checkpoints by Orbax: whole training states, one folder for each step.

Orbax writes a folder under another name and renames it once it is complete, so that whatever
interrupts a save leaves the older checkpoints as they were.
"""

import contextlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxpipe.errors import CheckpointError
from jaxpipe.storage import Placed

_SHOWN = 8  # mismatches in a message


class Checkpoints(contextlib.AbstractContextManager["Checkpoints"]):
    """The checkpoints of a run.

    >>> import tempfile, jax.numpy as jnp
    >>> with Checkpoints(Path(tempfile.mkdtemp()) / "checkpoints", keep=2) as checkpoints:
    ...     for step in (1, 2, 3):
    ...         checkpoints.save(step, {"weight": jnp.full(4, step)})
    ...     checkpoints.steps(), checkpoints.restore(3, {"weight": jnp.zeros(4, int)})
    ([2, 3], {'weight': Array([3, 3, 3, 3], dtype=int32)})
    """

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        """Opens the folder, which need not exist.

        Args:
          folder: holds a folder per step.
          keep: how many of the newest stay.
        """
        self.folder = folder.absolute()  # Orbax takes no relative paths
        # A save in the background would read buffers that the next step reuses.
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        # The handler is named so that what a folder holds can be looked at before it is restored.
        self._manager = ocp.CheckpointManager(
            self.folder, options=options, item_handlers=ocp.StandardCheckpointHandler()
        )

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        """The newest step, or None if there is no checkpoint."""
        return self._manager.latest_step()

    def path(self, step: int) -> Path:
        """The folder of a step."""
        return self.folder / str(step)

    def save(self, step: int, state: Any) -> None:
        """Writes a state and waits until it is there; a step that is there already stays.

        Args:
          step: the step the state belongs to.
          state: any pytree of `jax.Array`s.

        Raises:
          CheckpointError: the state cannot be written; older checkpoints are untouched.
        """
        if step in self.steps():
            return
        try:
            saved = dict(layouts=_layouts(state))
            self._manager.save(step, args=ocp.args.StandardSave(state), custom_metadata=saved)
            self._manager.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"cannot write the checkpoint of step {step} to {self.folder}: {error}. Older"
                f" checkpoints: {self.steps() or 'none'}."
            ) from error

    def restore(self, step: int, like: Any) -> Any:
        """Reads a state.

        Args:
          step: one of `steps()`.
          like: a state of the same structure; the result has its shapes, dtypes and shardings.

        Raises:
          CheckpointError: there is no such checkpoint, or it does not look like `like`.
        """
        if step not in self.steps():
            raise CheckpointError(
                f"no checkpoint of step {step} in {self.folder}; known: {self.steps() or 'none'}."
            )
        problems = _mismatches(_shapes(self._manager.item_metadata(step)), _shapes(like))
        saved = (self._manager.metadata(step).custom_metadata or {}).get("layouts")
        if not problems and saved not in (None, _layouts(like)):
            problems = [
                "its layers lie on other ranks, or in another sequence: the partition, or the"
                " placement of the schedule's stages, is another one"
            ]
        if problems:
            listed = "\n  ".join(problems)
            raise CheckpointError(
                f"the checkpoint {self.path(step)} does not fit this run:\n  {listed}\nUse the"
                " configuration that it was saved with, or start a new run."
            )
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), like
        )
        return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))


def _shapes(state: Any) -> dict[str, str]:
    """What each leaf is, by its path: `{"params/block/kernel": "float32 (8, 2)"}`."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): _described(leaf)
        for path, leaf in leaves
    }


def _layouts(state: Any) -> list[str]:
    """Where placed trees have their leaves: equal shapes may hold other layers."""
    is_placed = lambda node: isinstance(node, Placed)
    nodes = jax.tree.leaves(state, is_leaf=is_placed)
    return [node.layout.fingerprint for node in nodes if is_placed(node)]


def _described(leaf: Any) -> str:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.eval_shape(jax.random.key_data, leaf)  # what is on disk of a key
    return f"{np.dtype(leaf.dtype)} {tuple(leaf.shape)}"


def _mismatches(saved: dict[str, str], wanted: dict[str, str]) -> list[str]:
    """Where they differ, the first few."""
    paths = [path for path in sorted(saved | wanted) if saved.get(path) != wanted.get(path)]
    shown = [
        f"{path}: saved {saved.get(path, 'nothing')}, expected {wanted.get(path, 'nothing')}"
        for path in paths[:_SHOWN]
    ]
    return shown + [f"and {len(paths) - _SHOWN} more"] * (len(paths) > _SHOWN)
