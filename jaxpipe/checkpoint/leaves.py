"""A checkpoint as a mapping from names to arrays on the host, each read when it is asked for."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from jaxpipe.checkpoint.folder import STATE
from jaxpipe.checkpoint.load import Reader, sources
from jaxpipe.checkpoint.manifest import Manifest, checked_manifest


class Leaves(Mapping[str, np.ndarray]):
    """What a checkpoint holds, by names such as `params.01_Block.mlp.up.kernel`.

    Attributes:
      manifest: of the checkpoint.

    Raises:
      CorruptCheckpointError: it is damaged, so far as can be told without reading it.
    """

    def __init__(self, path: Path) -> None:
        """Opens the checkpoint in a folder."""
        self.manifest: Manifest = checked_manifest(path)
        self._sources = sources(self.manifest)
        self._reader = Reader(path / STATE, self.manifest)

    def __getitem__(self, key: str) -> np.ndarray:
        """A leaf.

        Raises:
          CorruptCheckpointError: it is not as it was written.
        """
        source = self._sources[key]
        whole = [slice(0, size) for size in source.entry.member_shape]
        return np.array(self._reader.read(source, whole))

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)
