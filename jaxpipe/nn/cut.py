"""What each rank of the `tensor` axis has of a parameter: its share of one dim."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
from flax.core import meta

from jaxpipe import tensor
from jaxpipe.errors import BatchError, ConfigError
from jaxpipe.mesh import TENSOR


class CutBox(meta.Partitioned[Any]):
    """A parameter that is cut over the `tensor` axis, in Flax's words.

    Opening it gives the array and nothing else: inside a pipeline, where every mesh axis is manual,
    the sharding constraint that Flax would add is an error.
    """

    def unbox(self, apply_constraint: bool = True) -> Any:
        """The array as it is."""
        del apply_constraint
        return self.value


def cut_param(
    module: nn.Module,
    name: str,
    init: nn.initializers.Initializer,
    shape: Sequence[int],
    dim: int,
    what: str,
) -> jax.Array:
    """A parameter of `module`: whole where there is one rank, else this rank's piece of `dim`.

    Args:
      module: whose parameter it is, within its call.
      name: its name in the module.
      init: makes the whole array; pieces are cut from that.
      shape: of the whole array.
      dim: which dim is cut, from 0.
      what: how a message calls that dim.

    Raises:
      ConfigError: the ranks do not divide the dim.
    """
    local = [share(size, what) if i == dim else size for i, size in enumerate(shape)]
    names = tuple(TENSOR if i == dim else None for i in range(len(shape)))
    boxed: Any = lambda *args: CutBox(init(*args), names)
    return module.param(name, boxed, tuple(local))


def share(size: int, what: str) -> int:
    """How many of `size` each rank has.

    Args:
      size: of the whole.
      what: how a message calls it.

    Raises:
      ConfigError: the ranks do not divide it.

    >>> share(12, "num_heads")  # one rank
    12
    """
    if size % tensor.size():
        raise ConfigError(_indivisible(what, size))
    return size // tensor.size()


def check_time(time: int) -> None:
    """Raises `BatchError` unless sequences of `time` tokens can be cut over the ranks."""
    if time % tensor.size():
        raise BatchError(
            _indivisible("the sequences' time", time) + " Or set sequence_parallel=False."
        )


def is_cut(sequence_parallel: bool) -> bool:
    """Whether activations that may be cut along time are."""
    return sequence_parallel and tensor.size() > 1


def _indivisible(what: str, size: int) -> str:
    ranks = tensor.size()
    below = size // ranks * ranks
    choices = f"{below} or {below + ranks}" if below else f"{ranks}"
    return (
        f"Got {what} = {size}, expected a multiple of the {ranks} ranks of the {TENSOR!r} axis that"
        f" share it: use {choices}, or a mesh with fewer of them."
    )
