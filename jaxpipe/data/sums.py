"""Checksums of a file's blocks: each block is checked when something of it is read first.

So opening terabytes takes no longer than opening kilobytes, and nothing that is not as it was
written is ever used.
"""

import zlib
from pathlib import Path

import numpy as np

from jaxpipe.errors import DataError

BLOCK = 2**16  # bytes: some times what a sample needs, and 1/16,000 of them in checksums


class BlockSums:
    """Makes them, of bytes that come in pieces.

    >>> sums = BlockSums()
    >>> sums.add(b"abc")
    >>> sums.close().tolist() == [zlib.crc32(b"abc")]
    True
    """

    def __init__(self) -> None:
        self._done: list[int] = []
        self._crc = self._filled = 0

    def add(self, data: bytes) -> None:
        """What comes next."""
        left = memoryview(data)
        while left:
            part = left[: BLOCK - self._filled]
            self._crc = zlib.crc32(part, self._crc)
            self._filled += len(part)
            left = left[len(part) :]
            if self._filled == BLOCK:
                self._end_block()

    def close(self) -> np.ndarray:
        """uint32 [blocks], CRC-32 of each; the last block may be short."""
        if self._filled:
            self._end_block()
        return np.array(self._done, np.uint32)

    def _end_block(self) -> None:
        self._done.append(self._crc)
        self._crc = self._filled = 0


class Checked:
    """An array that lies in a file, and what its blocks should be.

    Args:
      path: the file, for messages.
      values: all of it, as mapped, of a type whose size divides a block.
      sums: uint32 [blocks], as `BlockSums` makes them.
      anew: what to do about a block that is damaged; a sentence.
    """

    def __init__(self, path: Path, values: np.ndarray, sums: np.ndarray, anew: str) -> None:
        self._path, self._values, self._sums, self._anew = path, values, sums, anew
        self._good = np.zeros(len(sums), bool)  # threads may check one twice, which does no harm

    def check(self, start: int, stop: int) -> None:
        """Looks at blocks of these values that nobody has looked at.

        Raises:
          DataError: one is not as it was written. Names the file and the bytes.
        """
        if start >= stop:
            return
        size = BLOCK // self._values.itemsize
        for block in range(start // size, -(-stop // size)):
            if self._good[block]:
                continue
            found = zlib.crc32(self._values[block * size : (block + 1) * size].data)
            if found != self._sums[block]:
                raise DataError(
                    f"{self._path} is not as it was written, somewhere in bytes {block * BLOCK:,}"
                    f" to {(block + 1) * BLOCK:,}: got CRC-32 {found:08x}, expected"
                    f" {self._sums[block]:08x}. {self._anew}"
                )
            self._good[block] = True
