"""The manifest: what a checkpoint consists of, to the byte. It is written last, and seals it.

A folder without one is no checkpoint. It is JSON, with a checksum of itself, so that every flipped
bit of a checkpoint is found: in the manifest, or by it.
"""

import dataclasses
import json
import math
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxpipe.checkpoint.contents import Contents
from jaxpipe.checkpoint.names import in_order
from jaxpipe.checkpoint.zarr import FileSum, Stored, chunk_of
from jaxpipe.errors import CheckpointError, CorruptCheckpointError, first_few

FORMAT, VERSION = "jaxpipe checkpoint", 1
FILE = "MANIFEST.json"
_LARGEST = 256 * 2**20  # bytes of a manifest
_WORD = r"[A-Za-z0-9_%-]+"
_NAME = re.compile(rf"{_WORD}(\.{_WORD})*")


class Entry(NamedTuple):
    """An array of a checkpoint.

    Attributes:
      shape: as it is written.
      dtype: its name.
      chunk: the shape of its chunks.
      keys: of its members; along the first dim where it is `layered`.
      layered: whether the first dim counts layers.
      layers: the layer of each member, or None.
    """

    shape: tuple[int, ...]
    dtype: str
    chunk: tuple[int, ...]
    keys: tuple[str, ...]
    layered: bool
    layers: tuple[str | None, ...]

    def stored(self, name: str) -> Stored:
        """The array in the checkpoint's folder."""
        dtype = np.dtype(getattr(jnp, self.dtype, self.dtype))
        return Stored(name, self.shape, dtype, self.chunk)

    @property
    def member_shape(self) -> tuple[int, ...]:
        """The shape of one member."""
        return self.shape[1:] if self.layered else self.shape


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a checkpoint consists of.

    Attributes:
      step: steps that are done.
      arrays: {name: what it is}.
      files: {path below the checkpoint's folder: what it holds}.
      metadata: whatever else is worth knowing: partition, schedule, mesh, versions, configuration.
    """

    step: int
    arrays: Mapping[str, Entry]
    files: Mapping[str, FileSum]
    metadata: Mapping[str, Any]

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return sum(size for size, _ in self.files.values())

    def write(self, folder: Path) -> None:
        """Seals a checkpoint: whatever interrupts this, there is a whole manifest or none."""
        body = json.dumps(
            {
                "format": FORMAT,
                "version": VERSION,
                "step": self.step,
                "arrays": {name: entry._asdict() for name, entry in self.arrays.items()},
                "files": self.files,
                "metadata": dict(self.metadata),
            },
            indent=1,
        )
        text = json.dumps({"crc32": zlib.crc32(body.encode())}) + "\n" + body + "\n"
        unfinished = folder / f"{FILE}.unfinished"
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(folder / FILE)
        sync(folder)
        sync(folder.parent)


def sync(path: Path) -> None:
    """Has a file, or the names in a folder, reach the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint.

    Raises:
      CorruptCheckpointError: there is none, or it is not as it was written.
      CheckpointError: it is of a newer jaxpipe.
    """
    path = folder / FILE
    if path.is_symlink() or not path.is_file():
        raise CorruptCheckpointError(f"{folder} has no {FILE}: it was never finished.")
    if path.stat().st_size > _LARGEST:
        raise CorruptCheckpointError(f"{path} has {path.stat().st_size:,} bytes; no manifest has.")
    try:
        head, body = path.read_bytes().split(b"\n", 1)
        crc = json.loads(head)["crc32"]
        found = zlib.crc32(body.removesuffix(b"\n"))
        content = json.loads(body) if found == crc and body.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptCheckpointError(f"{path} is damaged: {error}.") from None
    if content is None:
        raise CorruptCheckpointError(f"{path} is damaged: its checksum is another.")
    if content.get("format") != FORMAT or content.get("version") != VERSION:
        raise CheckpointError(
            f"{path} has format {content.get('format')!r}, version {content.get('version')!r};"
            f" expected {FORMAT!r}, version {VERSION}. Read it with the jaxpipe that wrote it."
        )
    try:
        return _checked(content)
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptCheckpointError(f"{path} makes no sense: {error}.") from None


def checked_manifest(folder: Path) -> Manifest:
    """The same, once all files are found to be there, of the right sizes.

    Raises:
      CorruptCheckpointError: they are not, or the manifest is missing or damaged.
      CheckpointError: it is of a newer jaxpipe.
    """
    manifest = read_manifest(folder)
    problems = wrong_sizes(folder, manifest)
    if problems:
        listed = "".join(f"\n  {problem}" for problem in first_few(problems))
        raise CorruptCheckpointError(f"{folder} is damaged:{listed}")
    return manifest


def _checked(content: Mapping[str, Any]) -> Manifest:
    """Paths in it are not to be trusted: none may lead out of the folder."""
    for path in content["files"]:
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts or "\\" in path:
            raise ValueError(f"file {path!r}")
    for name in content["arrays"]:
        if not _NAME.fullmatch(name):
            raise ValueError(f"array {name!r}")
    arrays = {
        name: Entry(
            tuple(entry["shape"]), entry["dtype"], tuple(entry["chunk"]), tuple(entry["keys"]),
            bool(entry["layered"]), tuple(entry["layers"]),
        )
        for name, entry in content["arrays"].items()
    }  # fmt: skip
    files = {path: FileSum(*found) for path, found in content["files"].items()}
    return Manifest(int(content["step"]), arrays, files, content["metadata"])


def entries(contents: Contents) -> dict[str, Entry]:
    """What a manifest says of the arrays of a state."""
    return {
        array.name: Entry(
            array.whole_shape, array.dtype.name, chunk_of(contents, array),
            tuple(member.key for member in array.members), array.layered,
            tuple(member.layer for member in array.members),
        )
        for array in contents.arrays
    }  # fmt: skip


class LayerSizes(NamedTuple):
    """What a checkpoint has of a layer.

    Attributes:
      parameters: how many.
      bytes: of these.
      rest: bytes of all else that belongs to it, as the optimizer's state.
    """

    parameters: int
    bytes: int
    rest: int


def layer_sizes(manifest: Manifest) -> dict[str, LayerSizes]:
    """{layer: what a checkpoint has of it}, in the model's order."""
    found: dict[str, LayerSizes] = {}
    for name, entry in manifest.arrays.items():
        count = math.prod(entry.member_shape)
        size = count * entry.stored(name).dtype.itemsize
        for layer in filter(None, entry.layers):
            before = found.get(layer, LayerSizes(0, 0, 0))
            own = name.startswith("params.")
            more = (count, size, 0) if own else (0, 0, size)
            found[layer] = LayerSizes(*(a + b for a, b in zip(before, more, strict=True)))
    return dict(sorted(found.items(), key=lambda item: in_order(item[0])))


def wrong_sizes(folder: Path, manifest: Manifest) -> list[str]:
    """Files that are missing or of another size: quick to find, without reading any."""
    problems = []
    for name, expected in manifest.files.items():
        path = folder / name
        try:
            size = path.lstat().st_size if path.is_file() and not path.is_symlink() else None
        except OSError:
            size = None
        if size is None:
            problems.append(f"{name}: is missing")
        elif size != expected.size:
            problems.append(f"{name}: has {size:,} bytes, expected {expected.size:,}")
    return problems


def wrong_sums(folder: Path, manifest: Manifest, every: int = 1, first: int = 0) -> list[str]:
    """Files that are not as they were written: reads them.

    Args:
      folder: of the checkpoint.
      manifest: its manifest.
      every: of so many files one is read.
      first: which of these.
    """
    problems = []
    for name, expected in list(manifest.files.items())[first::every]:
        try:
            found = FileSum.of(folder / name)
        except OSError as error:
            problems.append(f"{name}: cannot be read: {error}")
            continue
        if found != expected:
            problems.append(f"{name}: is not as it was written (CRC-32 {found.crc32:08x})")
    return problems
