"""Tokens on disk, in files that are mapped into memory: any window is reached at once.

tokens/tokens.bin   ids one after another, uint8, uint16 or uint32
       sums.bin     uint32: a checksum of each block of tokens.bin
       ends.bin     uint64: after which token each document ends
       tokens.json  how many there are, of what, and checksums of the other two; written last
"""

import contextlib
import json
import os
import shutil
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxpipe.data.sums import BLOCK, BlockSums, Checked
from jaxpipe.errors import DataError

_INDEX, _IDS, _SUMS, _ENDS = "tokens.json", "tokens.bin", "sums.bin", "ends.bin"
_VERSION = 2
_TYPES = ("uint8", "uint16", "uint32")
_ANEW = "Copy its folder anew, or write it anew."
_CHUNK = 2**22  # ids that are looked at together


class Tokens(NamedTuple):
    """Documents of ids, one after another.

    Attributes:
      ids: [tokens], of an unsigned type. `read` gives them checked.
      ends: uint64 [documents], rising: after which token each ends; the last is all of them.
      vocab_size: ids are below it.
      fingerprint: equal for equal tokens.
      checked: the file that they are from, if it has checksums.
      start: where in it they begin.
    """

    ids: np.ndarray
    ends: np.ndarray
    vocab_size: int
    fingerprint: str
    checked: Checked | None = None
    start: int = 0

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """The ids from one place up to another, by default all, once it is sure what they are.

        Raises:
          DataError: they are not as they were written. Names the file.
        """
        start, stop, _ = slice(start, stop).indices(len(self.ids))
        if self.checked is not None:
            self.checked.check(self.start + start, self.start + stop)
        return self.ids[start:stop]

    def part(self, start: int, stop: int, ends: np.ndarray, name: str) -> "Tokens":
        """Some of them: from one place up to another, where their documents end, and their name."""
        return self._replace(
            ids=self.ids[start:stop],
            ends=ends,
            fingerprint=f"{self.fingerprint}[{name}]",
            start=self.start + start,
        )


def id_type(vocab_size: int) -> np.dtype:
    """The smallest type that holds all ids.

    >>> id_type(256), id_type(50257), id_type(128256)
    (dtype('uint8'), dtype('uint16'), dtype('uint32'))
    """
    return np.min_scalar_type(max(vocab_size - 1, 1))


def write_tokens(
    folder: Path,
    documents: Iterable[np.ndarray],
    vocab_size: int,
) -> Tokens:
    """Writes documents, a few at a time; the folder is there when all of it is.

    Args:
      folder: to write; replaced if it is there.
      documents: integers [tokens] each.
      vocab_size: ids are below it.

    Raises:
      DataError: an id is out of range, or there is none at all.
    """
    with TokenWriter(folder, vocab_size) as writer:
        for ids in documents:
            writer.add(ids)
        if not writer.num_tokens:
            raise DataError("there are no tokens at all; expected text.")
        return writer.close()


class TokenWriter(contextlib.AbstractContextManager["TokenWriter"]):
    """Writes documents, one at a time; the folder is there when it is closed.

    Left in another way, it leaves nothing behind.

    Args:
      folder: to write; replaced if it is there.
      vocab_size: ids are below it.

    Attributes:
      num_tokens: that were added.
    """

    def __init__(self, folder: Path, vocab_size: int) -> None:
        self.folder, self._vocab_size = folder, vocab_size
        self._dtype, self._ends = id_type(vocab_size), []
        self._sums, self.num_tokens = BlockSums(), 0
        self._making = folder.with_name(f"{folder.name}.making-{os.getpid()}")
        shutil.rmtree(self._making, ignore_errors=True)
        self._making.mkdir(parents=True)
        self._file = (self._making / _IDS).open("wb")

    def add(self, ids: np.ndarray) -> None:
        """Adds a document, integers [tokens].

        Raises:
          DataError: an id is out of range.
        """
        if ids.size and (ids.min() < 0 or ids.max() >= self._vocab_size):
            raise DataError(
                f"document {len(self._ends)} has ids from {ids.min()} to {ids.max()}; expected 0 to"
                f" {self._vocab_size - 1}."
            )
        data = ids.astype(self._dtype).tobytes()
        self._file.write(data)
        self._sums.add(data)
        self.num_tokens += ids.size
        self._ends.append(self.num_tokens)

    def close(self) -> Tokens:
        """Puts the folder into its place, and maps it."""
        self._file.close()
        others = {_SUMS: self._sums.close(), _ENDS: np.array(self._ends, np.uint64)}
        for name, values in others.items():
            (self._making / name).write_bytes(values.tobytes())
        index = {
            "version": _VERSION,
            "dtype": self._dtype.name,
            "vocab_size": self._vocab_size,
            "num_tokens": self.num_tokens,
            "num_documents": len(self._ends),
            "crc32": {name: zlib.crc32(values.data) for name, values in others.items()},
        }
        (self._making / _INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(self.folder, ignore_errors=True)
        self._making.rename(self.folder)
        return open_tokens(self.folder)

    def __exit__(self, *_: object) -> None:
        self._file.close()
        shutil.rmtree(self._making, ignore_errors=True)


def open_tokens(folder: Path, anew: str = "") -> Tokens:
    """Maps tokens that `write_tokens` wrote. Each block of ids is checked when it is read first.

    Args:
      folder: of the tokens.
      anew: what else can be done about damage; a sentence.

    Raises:
      DataError: the folder is none of these, or a file's size, or the checksum of one of the small
        ones, is not what it should be. Names the file.
    """
    anew = f"{_ANEW} {anew}".rstrip()
    index = _index(folder, anew)
    dtype, total, crcs = np.dtype(index["dtype"]), index["num_tokens"], index["crc32"]
    blocks = -(-total * dtype.itemsize // BLOCK)
    ids = _mapped(folder / _IDS, dtype, total, anew)
    sums = _mapped(folder / _SUMS, np.dtype(np.uint32), blocks, anew)
    ends = _mapped(folder / _ENDS, np.dtype(np.uint64), index["num_documents"], anew)
    for name, values in ((_SUMS, sums), (_ENDS, ends)):
        if (found := zlib.crc32(values.data)) != crcs[name]:
            raise DataError(
                f"{folder / name} is not as it was written: got CRC-32 {found:08x}, expected"
                f" {crcs[name]:08x}, as {_INDEX} says. {anew}"
            )
    fingerprint = "-".join(f"{crcs[name]:08x}" for name in (_SUMS, _ENDS))
    checked = Checked(folder / _IDS, ids, sums, anew)
    return Tokens(ids, ends, index["vocab_size"], f"{total}-{fingerprint}", checked)


def _index(folder: Path, anew: str) -> dict[str, Any]:
    """What `tokens.json` says: all that it should."""
    path = folder / _INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} is no folder of tokens: {error}.") from None
    version = index.get("version") if isinstance(index, dict) else None
    if version != _VERSION:
        raise DataError(f"{path}: got version {version}, expected {_VERSION}. {anew}")
    crcs = index.get("crc32")
    numbers = [index.get(name) for name in ("num_tokens", "num_documents", "vocab_size")]
    numbers += [crcs.get(name) if isinstance(crcs, dict) else None for name in (_SUMS, _ENDS)]
    if index.get("dtype") not in _TYPES or not all(isinstance(one, int) for one in numbers):
        raise DataError(f"{path} is not as write_tokens writes it: got {index}. {anew}")
    return index


def open_raw(path: Path, dtype: str, vocab_size: int, end: int | None = None) -> Tokens:
    """Maps a file of ids alone, or a `.npy`, as many tools write them.

    Args:
      path: the file.
      dtype: of the ids, for a file without a header.
      vocab_size: ids are below it.
      end: the id that ends documents; without one all is one document.

    Raises:
      DataError: it is no such file, or an id is out of range.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist; expected a file of token ids.")
    if path.suffix == ".npy":
        try:
            ids = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise DataError(f"{path} is no .npy that can be read: {error}") from None
    else:
        size, item = path.stat().st_size, np.dtype(dtype).itemsize
        if size % item:
            raise DataError(f"{path} has {size} bytes, no multiple of {item} ({dtype}).")
        ids = _mapped(path, np.dtype(dtype), size // item, _ANEW)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer) or not ids.size:
        raise DataError(f"{path} has {ids.dtype} of shape {ids.shape}; expected integers [tokens].")
    ends, crc = [], 0
    for start, part in _parts(ids):
        if part.min() < 0 or part.max() >= vocab_size:
            where = start + int(np.argmax((part < 0) | (part >= vocab_size)))
            raise DataError(
                f"{path}: token {where} has id {ids[where]}; expected 0 to {vocab_size - 1}."
            )
        crc = zlib.crc32(np.ascontiguousarray(part).data, crc)
        if end is not None:
            ends.append(start + np.flatnonzero(part == end) + 1)
    bounds = np.concatenate([*ends, [ids.size]]).astype(np.uint64)
    return Tokens(ids, np.unique(bounds), vocab_size, f"{ids.size}-{crc:08x}")


def part_of(tokens: Tokens, first: int, last: int) -> Tokens:
    """The documents from `first` up to `last`."""
    start = int(tokens.ends[first - 1]) if first else 0
    ends = tokens.ends[first:last] - np.uint64(start)
    stop = start + (int(ends[-1]) if len(ends) else 0)
    return tokens.part(start, stop, ends, f"{first}:{last}")


def _parts(ids: np.ndarray) -> Iterable[tuple[int, np.ndarray]]:
    for start in range(0, len(ids), _CHUNK):
        yield start, ids[start : start + _CHUNK]


def _mapped(path: Path, dtype: np.dtype, count: int, anew: str) -> np.ndarray:
    size = path.stat().st_size if path.is_file() else -1
    if not count and not size:
        return np.zeros(0, dtype)  # nothing cannot be mapped
    if size != count * dtype.itemsize:
        raise DataError(
            f"{path} has {max(size, 0)} bytes, expected {count * dtype.itemsize}: it was cut, or"
            f" is of other tokens. {anew}"
        )
    return np.memmap(path, dtype, "r", shape=(count,))
