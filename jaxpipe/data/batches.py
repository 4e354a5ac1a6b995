"""Batches: samples in a random order that is the same everywhere, and can be entered anywhere.

The batch of a number is a pure function of (samples, seed, number), by `grain`: nothing but the
number has to be stored to go on, and neither processes nor their number change the order.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, cast

import numpy as np

from jaxpipe.data.waiting import waited_for
from jaxpipe.errors import DataError

Batch = dict[str, np.ndarray]


class Samples(Protocol):
    """Samples, dicts of arrays of the same shapes, each reached by its number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Batch: ...


class Sides(NamedTuple):
    """Samples to train on, and samples to evaluate on."""

    training: Samples
    held_out: Samples


_THREADS, _AHEAD = 4, 8  # that read samples; batches that wait


class Batches:
    """Batches without end: all samples in a random order, then all in another one, and so on.

    Args:
      samples: what there is.
      batch_size: samples of a batch, over all processes.
      seed: of the order.
      rows: which of them this process gets; by default all.
      shuffle: whether the order is random.
      name: of the samples, for messages.

    Raises:
      DataError: there are no samples.

    >>> samples = [{"inputs": np.array([i])} for i in range(3)]
    >>> [Batches(samples, 2, seed=1)[n]["inputs"].ravel().tolist() for n in (1, 2, 3)]
    [[1, 0], [2, 2], [1, 0]]
    """

    def __init__(
        self,
        samples: Samples,
        batch_size: int,
        *,
        seed: int,
        rows: slice = slice(None),
        shuffle: bool = True,
        name: str = "the samples",
    ) -> None:
        import grain

        if not len(samples):
            raise DataError("there are no samples; expected at least one.")
        if batch_size < 1:
            raise DataError(f"batch_size={batch_size}; expected at least 1.")
        self._name = name
        self.num_samples, self._size = len(samples), batch_size
        self._rows = range(batch_size)[rows]
        ordered = grain.MapDataset.source(cast(Any, samples)).seed(seed)
        self._ordered: Any = (ordered.shuffle() if shuffle else ordered).repeat()
        self._options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_AHEAD)

    def __getitem__(self, number: int) -> Batch:
        """The batch of a number, from 1."""
        if number < 1:
            raise DataError(f"batch {number}; expected 1 or more.")
        first = (number - 1) * self._size
        rows = [self._ordered[first + row] for row in self._rows]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def starting_at(self, number: int, patience: float | None = None) -> Iterator[Batch]:
        """Batches from that number on; the next ones are read meanwhile, by threads.

        Args:
          number: of the first.
          patience: seconds to wait for each; None: for ever.

        Raises:
          DataTimeoutError: one does not come in time.
        """
        import grain

        numbers = grain.MapDataset.range(number, 2**62).map(self.__getitem__)
        read = lambda: iter(numbers.to_iter_dataset(self._options))
        if patience is None:
            return read()
        return waited_for(read, patience, lambda n: f"batch {number + n} of {self._name}")

    def epoch(self, number: int) -> float:
        """How often all samples were used before the batch of that number."""
        return (number - 1) * self._size / self.num_samples


def spread(samples: Samples, num_batches: int, batch_size: int) -> list[Batch]:
    """Batches of samples that lie evenly among all, from the first to the last.

    Args:
      samples: what there is; each with `"weights"`.
      num_batches: how many batches; fewer where there are fewer samples. Then each comes once, and
        what fills up the last batch weighs nothing.
      batch_size: samples of each.

    Raises:
      DataError: there are no samples.
    """
    if not len(samples):
        raise DataError("there are no samples; expected at least one.")
    if num_batches * batch_size < len(samples):
        places = np.linspace(0, len(samples) - 1, num_batches * batch_size).astype(np.int64)
    else:
        num_batches = -(-len(samples) // batch_size)
        places = np.arange(num_batches * batch_size)
    rows = [samples[int(place) % len(samples)] for place in places]
    joined = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    joined["weights"][len(samples) :] = 0
    return [
        {name: part[i * batch_size : (i + 1) * batch_size] for name, part in joined.items()}
        for i in range(num_batches)
    ]
