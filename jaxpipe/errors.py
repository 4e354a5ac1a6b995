"""The exceptions a user may meet: all are `ValueError`s, one small tree.

A message says what was got, what was expected, and what to do, with the place.
"""

import difflib
from collections.abc import Iterable, Sequence


class JaxpipeError(ValueError):
    """The root of the tree: something the caller gave cannot be used as it is.

    Attributes:
      exit_code: of a program that it ends.
    """

    exit_code = 2


class ScheduleError(JaxpipeError):
    """A schedule that would compute the wrong thing, or hang."""


class PartitionError(JaxpipeError):
    """Layers that cannot be cut into the stages that were asked for."""


class LayerError(JaxpipeError):
    """A layer that cannot be built, does not fit its neighbour, or keeps state."""


class LossError(JaxpipeError):
    """A loss function that gives anything but a scalar, or a scalar sum and a scalar weight."""


class BatchError(JaxpipeError):
    """A batch with missing fields, unequal or indivisible sizes, or values out of range."""


class DataError(JaxpipeError):
    """Text, tokens or records that cannot be read, or are none that can be trained on."""


class DataTimeoutError(DataError):
    """Data that do not come; another start may find them."""

    exit_code = 1


class MeshError(JaxpipeError):
    """A mesh without the axes or the devices that are needed."""


class OptimizerError(JaxpipeError):
    """An optimizer that cannot run on parameters that live on several ranks."""


class ConfigError(JaxpipeError):
    """A configuration with unknown keys, values of the wrong type, or settings at odds."""


class ProcessError(JaxpipeError):
    """Processes that cannot find each other, or do not run the same thing."""


class CheckpointError(JaxpipeError):
    """A checkpoint that is missing, cannot be written, or does not fit the run."""


class CorruptCheckpointError(CheckpointError):
    """A checkpoint that is not as it was written."""


class CorruptStateError(JaxpipeError):
    """Devices that are to hold the same, and do not; a start from a checkpoint may go well."""

    exit_code = 1


class Diverged(JaxpipeError, FloatingPointError):
    """Losses or gradients that are not numbers, or infinite; or one of both that has leapt up.

    Attributes:
      step: where that was seen.
      skipped: steps in a row, up to that one, that changed nothing, not being finite or leaping up.
    """

    exit_code = 4

    def __init__(self, problem: str, step: int, skipped: int = 0) -> None:
        super().__init__(problem)
        self.step, self.skipped = step, skipped


class OutOfMemoryError(JaxpipeError):
    """Too little memory on a device for what it is to do."""


class ConvertError(JaxpipeError):
    """Weights that cannot be read from, or written for, another library."""


_SHOWN = 8


def first_few(lines: Sequence[str]) -> list[str]:
    """As many lines as a message should have, and how many more there are.

    >>> first_few(list("abcdefghij"))[-2:]
    ['h', 'and 2 more']
    """
    more = [f"and {len(lines) - _SHOWN} more"] * (len(lines) > _SHOWN)
    return [*lines[:_SHOWN], *more]


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint for an unknown name, to append to a message.

    >>> nearest("1f1", ["gpipe", "1f1b"])
    "did you mean '1f1b'? Known: '1f1b', 'gpipe'."
    >>> nearest("zzz", ["gpipe", "1f1b"])
    "known: '1f1b', 'gpipe'."
    """
    names = sorted(known)
    listed = ", ".join(repr(name) for name in names) + "."
    close = closest(word, names)
    return f"known: {listed}" if close is None else f"did you mean {close!r}? Known: {listed}"


def closest(word: str, known: Iterable[str]) -> str | None:
    """The name that an unknown one was probably meant to be, if there is one.

    >>> closest("1f1", ["gpipe", "1f1b"])
    '1f1b'
    """
    return next(iter(difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.6)), None)
