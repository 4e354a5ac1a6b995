"""Whether a checkpoint has what a state needs, name by name."""

import fnmatch
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jaxpipe.checkpoint.contents import Contents
from jaxpipe.checkpoint.load import Source
from jaxpipe.errors import CheckpointError, first_few


def match(
    contents: Contents,
    saved: dict[str, Source],
    where: str,
    *,
    partial: Sequence[str] = (),
    cast: bool = False,
) -> dict[str, Source]:
    """Finds every member of a state in a checkpoint.

    Args:
      contents: of the state.
      saved: of the checkpoint.
      where: names the checkpoint in messages.
      partial: patterns (`*`, `?`, `[..]`) of names that may be missing or misfit, in the state or
        in the checkpoint: there the state keeps what it has.
      cast: whether floats may become floats of another precision.

    Returns:
      {key of the state's member: where it is}, of all that are to be read.

    Raises:
      CheckpointError: anything else is missing, too much, or of another shape or dtype.
    """
    problems, found = [], {}
    members = contents.members()
    for key in sorted(saved.keys() | members.keys()):
        source, member = saved.get(key), members.get(key)
        have = source and (source.entry.member_shape, source.entry.stored(key).dtype)
        need = member and (member[0].shape, member[0].dtype)
        if source is not None and (have == need or (cast and _may_cast(have, need))):
            found[key] = source
        elif not any(fnmatch.fnmatchcase(key, pattern) for pattern in partial):
            problems.append(f"{key}: saved {_said(have)}, expected {_said(need)}")
    if problems:
        listed = "\n  ".join(first_few(problems))
        raise CheckpointError(
            f"the checkpoint {where} does not fit this run:\n  {listed}\nUse the configuration that"
            " it was saved with; or let names pass by partial=[...] (there the run keeps its own"
            " values), and other precisions by cast=True."
        )
    return found


def _may_cast(have: tuple | None, need: tuple | None) -> bool:
    if have is None or need is None or have[0] != need[0]:
        return False
    return all(jnp.issubdtype(dtype, jnp.floating) for _, dtype in (have, need))


def _said(what: tuple[tuple[int, ...], np.dtype] | None) -> str:
    return "nothing" if what is None else f"{what[1].name} {what[0]}"
