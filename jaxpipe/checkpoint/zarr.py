"""Arrays in a folder, as Orbax's handler of our arrays writes them with TensorStore (zarr 3).

Every layer has chunks, and so files, of its own, without compression and with a checksum behind
each (CRC-32C): weights hardly compress, and a reader of TensorStore notices a flipped bit.
"""

import asyncio
import dataclasses
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import orbax.checkpoint.future
import tensorstore as ts

from jaxpipe.checkpoint.contents import Array, Contents
from jaxpipe.checkpoint.snapshot import Block
from jaxpipe.storage import Placed

SMALL, LARGE = 2**20, 64 * 2**20  # bytes of the chunks of small and of large states
FILES = 2000  # that a state is cut into, more or less, if its chunks are neither
SUMS = "sums"  # the folder of what each process wrote
_AT_ONCE = 4  # blocks of a process that are written at the same time


class FileSum(NamedTuple):
    """What a file holds.

    Attributes:
      size: bytes.
      crc32: of all of them.
    """

    size: int
    crc32: int

    @classmethod
    def of(cls, path: Path) -> "FileSum":
        """Reads a file."""
        size, crc = 0, 0
        with path.open("rb") as file:
            while data := file.read(2**20):
                size, crc = size + len(data), zlib.crc32(data, crc)
        return cls(size, crc)


class Stored(NamedTuple):
    """An array in a folder.

    Attributes:
      name: of its own folder.
      shape: with the dim of layers.
      dtype: of its elements.
      chunk: the shape of its chunks.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    chunk: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)  # a tuple would be a tree
class Saved:
    """An array on its way into a checkpoint: a leaf of the tree that Orbax is given.

    Attributes:
      stored: what it is.
      blocks: what this process writes of it; they go as they are written.
    """

    stored: Stored
    blocks: list[Block]


class SavedHandler(ocp.type_handlers.TypeHandler):
    """Writes `Saved` arrays; whoever reads them finds arrays as Orbax writes those of JAX."""

    def typestr(self) -> str:
        """What the checkpoint says that they are."""
        return "jax.Array"

    async def metadata(self, infos: Sequence[Any]) -> Sequence[Any]:
        """Not asked for: our manifest has it."""
        raise NotImplementedError

    async def deserialize(self, infos: Sequence[Any], args: Any = None) -> Sequence[Any]:
        """Not asked for: `load` reads."""
        raise NotImplementedError

    async def serialize(
        self, values: Sequence[Saved], infos: Sequence[Any], args: Any = None
    ) -> Sequence[Any]:
        """Starts to write; the blocks are on the host already."""
        work = _write_all(list(zip(values, infos, strict=True)))
        name = "write the arrays of this process"
        return [orbax.checkpoint.future.CommitFutureAwaitingContractedSignals(work, name=name)]


def chunk_bytes(contents: Contents) -> int:
    """The most bytes of a chunk: a small share of what a process writes, and not too many files."""
    total = sum(array.num_bytes for array in contents.arrays)
    return min(max(SMALL, total // FILES), LARGE)


def chunk_shape(array: Array, piece: Sequence[int], most: int = SMALL) -> tuple[int, ...]:
    """Chunks of at most so many bytes that lie within a piece, the shape of which is given.

    >>> array = Array("w", (4096, 4096), np.dtype("float32"), (), True)
    >>> chunk_shape(array, (4096, 1024)), chunk_shape(array, (4096, 4096))
    ((1, 256, 1024), (1, 64, 4096))
    """
    room, chunk = most // array.dtype.itemsize, []
    for size, whole in zip(reversed(piece), reversed(array.shape), strict=True):
        most = max(1, min(size, room))
        if size:  # evenly: the last chunk takes as much room as the others
            most = -(-size // -(-size // most))
        if size != whole:  # pieces begin at multiples of their size, and so must chunks
            most = max(n for n in range(1, most + 1) if size % n == 0)
        chunk.append(most)
        room //= most
    return (*([1] if array.layered else []), *reversed(chunk))


def chunk_of(contents: Contents, array: Array) -> tuple[int, ...]:
    """The shape of an array's chunks: no two writers share one."""
    member, most = array.members[0], chunk_bytes(contents)
    node = contents.nodes[member.node]
    if member.leaf is None or not isinstance(node, Placed):
        return chunk_shape(array, array.shape, most)
    return chunk_shape(array, node.layout.cut_of(member.leaf).piece, most)


def spec(folder: Path, array: Stored) -> dict[str, Any]:
    """What TensorStore is to open."""
    zeros: dict[Any, Any] = {jnp.floating: 0.0, jnp.integer: 0, jnp.complexfloating: [0.0, 0.0]}
    found = [zero for sort, zero in zeros.items() if jnp.issubdtype(array.dtype, sort)]
    return {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{folder / array.name}/"},
        "metadata": {
            "shape": list(array.shape),
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(array.chunk)}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "data_type": array.dtype.name,
            "fill_value": found[0] if found else False,
            "codecs": [
                {"name": "bytes", "configuration": {"endian": "little"}},
                {"name": "crc32c"},
            ],
        },
        # Or a chunk of zeros would be no file, and a lost file a chunk of zeros.
        "store_data_equal_to_fill_value": True,
    }


async def _write_all(todo: list[tuple[Saved, Any]]) -> None:
    """Writes this process's blocks, and what its files hold; what fails is written down."""
    [folder] = {Path(info.parent_dir) for _, info in todo}
    limit, files, problem = asyncio.Semaphore(_AT_ONCE), {}, None
    try:
        for saved, _ in todo:
            if jax.process_index() == 0:
                await ts.open(ts.Spec(spec(folder, saved.stored)), create=True)
        work = [_write(folder, saved, limit) for saved, _ in todo]
        for found in await asyncio.gather(*work, return_exceptions=True):
            if isinstance(found, BaseException):
                raise found
            files |= found
    # A process that fails would keep the others waiting: it says so where the first one looks.
    except Exception as error:
        problem = f"{type(error).__name__}: {error}".partition(" [tensorstore_spec=")[0]
        for saved, _ in todo:
            saved.blocks.clear()
    note = {"problem": problem, "files": files}
    where = folder / SUMS / f"{jax.process_index()}.json"
    try:
        where.parent.mkdir(exist_ok=True)
        where.write_text(json.dumps(note), encoding="utf-8")
    except OSError:
        if problem is None:
            raise


async def _write(folder: Path, saved: Saved, limit: asyncio.Semaphore) -> dict[str, FileSum]:
    """Writes this process's blocks of an array, and reads the files again."""
    store, files = None, {}
    while saved.blocks:
        async with limit:
            if not saved.blocks:
                break
            block = saved.blocks.pop()
            if store is None:
                settings = ts.Spec(spec(folder, saved.stored))
                store = await ts.open(settings, open=True, assume_metadata=True)
            await store[block.place].write(
                np.asarray(block.value).reshape(store[block.place].shape),
                can_reference_source_data_indefinitely=True,
            )
            for name in _files(saved, block):
                path = f"{saved.stored.name}/{name}"
                files[path] = FileSum.of(folder / path)
    return files


def _files(saved: Saved, block: Block) -> list[str]:
    """The chunks that a block consists of."""
    index = block.place or tuple(slice(0, size) for size in saved.stored.shape)
    ranges = [
        range(s.start // size, -(-s.stop // size))
        for s, size in zip(index, saved.stored.chunk, strict=True)
    ]
    names = [""]
    for places in ranges:
        names = [f"{name}.{i}" for name in names for i in places]
    return [f"c{name}" for name in names]
