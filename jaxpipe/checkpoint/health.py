"""What checkpoints hold, and whether they are as they were written."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from jaxpipe.checkpoint.below import checkpoints_below, newest_below
from jaxpipe.checkpoint.manifest import (
    LayerSizes,
    Manifest,
    layer_sizes,
    read_manifest,
    wrong_sizes,
    wrong_sums,
)
from jaxpipe.errors import CheckpointError


class Inspected(NamedTuple):
    """What a checkpoint says that it holds.

    Attributes:
      path: its folder.
      manifest: its step, files and metadata: the schedule, mesh, partition and data of its run.
      layers: {layer: its parameters and bytes}, in the model's order.
      problems: files that are missing or of another size; none are read.
    """

    path: Path
    manifest: Manifest
    layers: Mapping[str, LayerSizes]
    problems: list[str]


class Verified(NamedTuple):
    """Whether a checkpoint is as it was written.

    Attributes:
      path: its folder.
      problems: what is wrong with it; empty if it is sound.
    """

    path: Path
    problems: list[str]


def inspect_checkpoint(path: Path) -> Inspected:
    """Looks at what a checkpoint holds, without reading its arrays.

    Args:
      path: of a checkpoint, or of the folder of a run or of its checkpoints: then the newest.

    Raises:
      CheckpointError: there is none, or one of another version.
      CorruptCheckpointError: its manifest is missing or damaged.
    """
    found = newest_below(path)
    manifest = read_manifest(found)
    return Inspected(found, manifest, layer_sizes(manifest), wrong_sizes(found, manifest))


def verify_checkpoints(path: Path) -> Iterator[Verified]:
    """Reads every byte of a checkpoint, or of all of a run, the oldest first; each as it is read.

    Args:
      path: of a checkpoint, or of the folder of a run or of its checkpoints.

    Raises:
      CheckpointError: there is none.
    """
    for found in checkpoints_below(path):
        try:
            manifest = read_manifest(found)
            problems = wrong_sizes(found, manifest) or wrong_sums(found, manifest)
        except CheckpointError as error:
            problems = [str(error)]
        yield Verified(found, problems)
