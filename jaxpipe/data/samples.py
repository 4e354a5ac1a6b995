"""Samples of a language model: what it is shown, what it is to predict, and what counts.

A sample is reached by its number, without reading those before it.
"""

from typing import Literal

import numpy as np

from jaxpipe.data.tokens import Tokens
from jaxpipe.errors import DataError

Sample = dict[str, np.ndarray]
Packing = Literal["stream", "packed", "padded"]


class TokenSamples:
    """All tokens as samples of one length, each token but the first of a sequence a target once.

    - `"stream"`: documents follow one another, and are read on into the next.
    - `"packed"`: likewise, but `"segment_ids"` keep them apart, and no token is to be predicted
      from another document.
    - `"padded"`: each document has samples of its own; the rest of its last one is empty.

    The end of all tokens is padded too, so none is dropped.

    Args:
      tokens: the documents.
      length: tokens that a sample shows.
      packing: how documents become samples.

    Raises:
      DataError: there is nothing to predict.

    >>> tokens = Tokens(np.arange(5, dtype=np.uint8), np.array([3, 5], np.uint64), 9, "")
    >>> [sample["inputs"].tolist() for sample in TokenSamples(tokens, 2)]
    [[0, 1], [2, 3]]
    >>> sample = TokenSamples(tokens, 4, "packed")[0]
    >>> [sample[name].tolist() for name in ("targets", "weights", "segment_ids")]
    [[1, 2, 3, 4], [1.0, 1.0, 0.0, 1.0], [0, 0, 0, 1]]
    """

    def __init__(self, tokens: Tokens, length: int, packing: Packing = "stream") -> None:
        if length < 1:
            raise DataError(f"length={length}; expected at least 1.")
        self._tokens, self._length, self._packing = tokens, length, packing
        self._first = None  # of each document's samples, for padded
        if packing == "padded":
            sizes = np.diff(tokens.ends.astype(np.int64), prepend=0)
            self._first = np.concatenate([[0], np.cumsum(-(-np.maximum(sizes - 1, 0) // length))])
            self._count = int(self._first[-1])
        else:
            self._count = -(-(len(tokens.ids) - 1) // length)
        if self._count < 1:
            raise DataError(
                f"{len(tokens.ids)} tokens in {len(tokens.ends)} documents have nothing to predict;"
                " expected two in a row."
            )

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:
        """The sample of a number: int32 [length], and float32 `"weights"`, 0 for what is empty."""
        if not 0 <= index < self._count:
            raise IndexError(index)
        start, stop = self._span(index)
        ids = self._tokens.read(start, stop).astype(np.int32)
        size = len(ids) - 1
        sample = {name: np.zeros(self._length, np.int32) for name in ("inputs", "targets")} | {
            "weights": np.zeros(self._length, np.float32)
        }
        sample["inputs"][:size], sample["targets"][:size] = ids[:-1], ids[1:]
        sample["weights"][:size] = 1
        if self._packing == "packed":
            # Which document the token at each place belongs to, counted from the first one here.
            places = np.arange(start, start + len(ids), dtype=np.uint64)
            document = np.searchsorted(self._tokens.ends, places, side="right")
            document -= document[0]
            segments = np.full(self._length, document[-1] + 1, np.int32)
            segments[:size] = document[:-1]
            sample["weights"][:size] = document[1:] == document[:-1]
            sample["segment_ids"] = segments
        return sample

    def _span(self, index: int) -> tuple[int, int]:
        """From which token to which; one more than it shows."""
        if self._first is None:
            start = index * self._length
            return start, min(start + self._length + 1, len(self._tokens.ids))
        document = int(np.searchsorted(self._first, index, side="right")) - 1
        begin = int(self._tokens.ends[document - 1]) if document else 0
        start = begin + (index - int(self._first[document])) * self._length
        return start, min(start + self._length + 1, int(self._tokens.ends[document]))
