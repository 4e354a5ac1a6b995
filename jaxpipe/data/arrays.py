"""Samples out of arrays of NumPy: images and their classes, say.

They lie in one `.npz`, or in a folder of `.npy`, which are mapped into memory. Nothing is ever
unpickled.
"""

import hashlib
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxpipe.data.batches import Batch, Sides
from jaxpipe.data.config import DataConfig
from jaxpipe.data.corpus import is_held_out
from jaxpipe.errors import DataError, nearest

_FIELDS = ("inputs", "targets", "weights")
_IGNORED = -100  # as in `batch`, which needs JAX
_AT_ONCE = 2**24  # elements that are looked at together


class Arrays(NamedTuple):
    """Samples to train on, and samples held out.

    Attributes:
      training: those to train on.
      held_out: the others.
      num_classes: integer targets are below it; None where targets are numbers.
      fingerprint: equal for equal samples on both sides.
    """

    training: "ArraySamples"
    held_out: "ArraySamples"
    num_classes: int | None
    fingerprint: str

    def __str__(self) -> str:
        shape = ", ".join(map(str, self.training.fields["inputs"].shape[1:]))
        what = "numbers" if self.num_classes is None else f"{self.num_classes:,} classes"
        return (
            f"data: {len(self.training):,} samples [{shape}] to train on, {len(self.held_out):,}"
            f" held out, {what}"
        )

    def samples(self, config: DataConfig) -> Sides:
        """Both sides; nothing of the configuration changes them."""
        del config
        return Sides(self.training, self.held_out)


class ArraySamples:
    """Rows of arrays as samples.

    Args:
      fields: `"inputs"` and `"targets"`, `[n, ...]`, and `"weights"` if not all count alike.
      rows: which of them, integers.

    >>> fields = {"inputs": np.eye(3), "targets": np.arange(3)}
    >>> sample = ArraySamples(fields, np.array([2, 0]))[0]
    >>> {name: value.tolist() for name, value in sample.items()}
    {'inputs': [0.0, 0.0, 1.0], 'targets': 2, 'weights': 1.0}
    """

    def __init__(self, fields: Mapping[str, np.ndarray], rows: np.ndarray) -> None:
        self.fields, self._rows = dict(fields), rows
        self._alike = np.ones(_weight_shape(fields["targets"])[1:], np.float32)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Batch:
        """A sample: floats as float32, uint8 as it is, other integers as int32; and its weight."""
        if not 0 <= index < len(self._rows):
            raise IndexError(index)
        row = self._rows[index]
        found = {name: _narrow(name, values[row]) for name, values in self.fields.items()}
        return found if "weights" in found else found | {"weights": self._alike}


def read_arrays(path: Path, held_out: Path | None = None, fraction: float = 0.05) -> Arrays:
    """Opens arrays and looks at all of them once.

    Args:
      path: a `.npz` with arrays `inputs` and `targets`, `[n, ...]`, or a folder with such `.npy`.
        Floats become float32 and integers int32; inputs of uint8 stay: pixels, say. Targets are
        classes if they are integers; -100 does not count. An array `weights`, for each integer
        target or for each sample, says what does not count alike.
      held_out: more of these, to evaluate on.
      fraction: without `held_out`, the share of the samples that is held out, by a hash of their
        numbers.

    Raises:
      DataError: there are no such arrays, they do not fit each other, hold what is no number, or
        one side has no sample. Names the array and the place.
    """
    fields = _open(path)
    crcs = [_looked_at(path, fields)]
    rows = np.arange(len(fields["inputs"]))
    if held_out is None:
        aside = np.array([is_held_out(str(row), fraction) for row in rows])
        sides = ArraySamples(fields, rows[~aside]), ArraySamples(fields, rows[aside])
        crcs.append(f"{fraction}")
    else:
        others = _open(held_out)
        crcs.append(_looked_at(held_out, others))
        _check_alike(fields, others, held_out)
        sides = ArraySamples(fields, rows), ArraySamples(others, np.arange(len(others["inputs"])))
    for name, side in zip(("to train on", "held out"), sides, strict=True):
        if not len(side):
            raise DataError(
                f"{path}: of {len(rows)} samples there are none {name}; expected at least one. Use"
                " more, or another data.held_out_fraction, or data.held_out."
            )
    classes = None
    if _is_integer(fields["targets"]):
        classes = 1 + max(int(side.fields["targets"].max()) for side in sides)
    return Arrays(*sides, classes, hashlib.sha256("\0".join(crcs).encode()).hexdigest())


def first_sample(path: Path) -> tuple[Batch, int | None]:
    """The first sample of a `.npz` or a folder of `.npy`, and how many classes the targets have.

    For what needs sizes alone: values are not looked at. None for targets that are numbers.

    Raises:
      DataError: there are no such arrays, or they do not fit each other.
    """
    fields = _open(path)
    targets = fields["targets"]
    classes = 1 + max(0, int(targets.max())) if _is_integer(targets) else None
    return ArraySamples(fields, np.arange(1))[0], classes


def _open(path: Path) -> dict[str, np.ndarray]:
    """The arrays of one place, by name; their shapes fit."""
    if path.is_dir():
        files = {file.stem: file for file in sorted(path.glob("*.npy"))}
        read = lambda name: np.load(files[name], mmap_mode="r", allow_pickle=False)
        return _read(path, list(files), read)
    if not path.is_file() or path.suffix != ".npz":
        raise DataError(f"{path} is no .npz and no folder of .npy files.")
    try:
        archive = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is no .npz: {error}") from None
    with archive:
        return _read(path, archive.files, archive.__getitem__)


def _read(path: Path, names: list[str], read: Callable[[str], np.ndarray]) -> dict[str, np.ndarray]:
    for name in ("inputs", "targets"):
        if name not in names:
            raise DataError(f"{path} has no array {name!r}: {nearest(name, names)}")
    if extra := [name for name in names if name not in _FIELDS]:
        raise DataError(f"{path}: unknown array {extra[0]!r}; {nearest(extra[0], _FIELDS)}")
    fields = {}
    for name in names:
        try:
            fields[name] = read(name)
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(
                f"{path}: {name!r} cannot be read: {error}. Expected an array of numbers as"
                " numpy.save writes it; Python objects are never unpickled."
            ) from None
    _check_shapes(path, fields)
    return fields


def _check_shapes(path: Path, fields: Mapping[str, np.ndarray]) -> None:
    for name, values in fields.items():
        if values.dtype.kind not in "fiub":
            raise DataError(
                f"{path}: {name!r} is of type {values.dtype}; expected floats, integers or bools."
            )
        if not values.ndim or not len(values):
            raise DataError(f"{path}: {name!r} is of shape {values.shape}; expected [n, ...].")
        if len(values) != len(fields["inputs"]):
            sizes = ", ".join(f"{name} {len(values)}" for name, values in fields.items())
            raise DataError(f"{path}: the arrays have samples: {sizes}; expected as many in each.")
    if "weights" in fields:
        got, expected = fields["weights"].shape, _weight_shape(fields["targets"])
        if got != expected or fields["weights"].dtype.kind != "f":
            raise DataError(
                f"{path}: 'weights' is {fields['weights'].dtype} of shape {got}; expected floats"
                f" of shape {expected}."
            )


def _check_alike(
    fields: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray], path: Path
) -> None:
    """Raises unless the arrays held out are like those to train on."""
    kind = lambda name, x: (_narrow(name, x[:0]).dtype, x.shape[1:])
    for name in sorted(fields.keys() | others.keys()):
        if (
            name not in others
            or name not in fields
            or (kind(name, others[name]) != kind(name, fields[name]))
        ):
            shown = [
                "none" if name not in side else "{} [n, *{}]".format(*kind(name, side[name]))
                for side in (others, fields)
            ]
            raise DataError(f"{path}: {name!r} is {shown[0]}; what is trained on has {shown[1]}.")


def _looked_at(path: Path, fields: Mapping[str, np.ndarray]) -> str:
    """Raises for values that cannot be trained on; else what is equal for equal values."""
    found = []
    for name, values in sorted(fields.items()):
        crc = 0
        for start, part in _parts(values):
            narrow = _narrow(name, part)
            _check_values(path, name, start, part, narrow)
            crc = zlib.crc32(np.ascontiguousarray(narrow).data, crc)
        found.append(f"{name} {_narrow(name, values[:0]).dtype} {values.shape} {crc:08x}")
    return " ".join(found)


def _check_values(path: Path, name: str, start: int, part: np.ndarray, narrow: np.ndarray) -> None:
    if narrow.dtype.kind == "f":
        wrong, expected = ~np.isfinite(narrow), "a number that float32 has"
    else:
        wrong, expected = narrow != part, "an integer that int32 has"
        if name == "targets":
            wrong |= (part < 0) & (part != _IGNORED)
            expected = f"a class, 0 or more, or {_IGNORED} for what is not to count"
    if name == "weights":
        wrong |= part < 0
        expected = "a weight, 0 or more"
    if wrong.any():
        first = tuple(int(i) for i in np.argwhere(wrong)[0])
        place = ", ".join(map(str, (start + first[0], *first[1:])))
        raise DataError(f"{path}: {name}[{place}] is {part[first]}; expected {expected}.")


def _parts(values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    rows = max(1, _AT_ONCE * len(values) // max(values.size, 1))
    for start in range(0, len(values), rows):
        yield start, values[start : start + rows]


def _narrow(name: str, values: np.ndarray) -> np.ndarray:
    """As devices are to have them."""
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return np.asarray(values, np.float32)
    keep = name == "inputs" and values.dtype == np.uint8
    return np.asarray(values, np.uint8 if keep else np.int32)


def _is_integer(values: np.ndarray) -> bool:
    return values.dtype.kind != "f"


def _weight_shape(targets: np.ndarray) -> tuple[int, ...]:
    """One for each class, or for each sample of numbers."""
    return targets.shape if _is_integer(targets) else targets.shape[:1]
