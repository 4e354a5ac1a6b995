"""What a run trains on and what is held out, whatever it was read from."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from jaxpipe.data.arrays import read_arrays
from jaxpipe.data.batches import Sides
from jaxpipe.data.config import DataConfig
from jaxpipe.data.corpus import read_corpus
from jaxpipe.errors import DataError


class Dataset(Protocol):
    """Data as a trainer sees them, a `Corpus` of tokens or `Arrays`; printed, they say how many."""

    @property
    def fingerprint(self) -> str:
        """Equal for equal data on both sides."""
        ...

    @property
    def num_classes(self) -> int | None:
        """Integer targets are below it; None where targets are numbers."""
        ...

    def samples(self, config: DataConfig) -> Sides:
        """Both sides as samples of the shape that is asked for."""
        ...


def read_data(
    config: DataConfig, cache: Path, say: Callable[[str], None] = lambda text: None
) -> Dataset:
    """Reads the data that a configuration names; arguments and errors as `read_corpus`."""
    if config.source != "arrays":
        return read_corpus(config, cache, say)
    if config.path is None:
        raise DataError("data.path: got null, expected a .npz, or a folder of .npy files.")
    aside = None if config.held_out is None else Path(config.held_out)
    return read_arrays(Path(config.path), aside, config.held_out_fraction)
