"""Where a run is written."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath

TOKENS_FOLDER = "tokens"  # beside the runs, unless `data.cache` says otherwise


@dataclass(frozen=True)
class RunConfig:
    """Where the run is written: directory/name/."""

    name: str = "gpt-stdlib"
    """Name of the run, and of its folder."""
    directory: str = "runs"
    """Folder of all runs."""

    FREE = ("name", "directory")

    def problems(self) -> Iterator[str]:
        """What is wrong with these settings; a line each."""
        name = self.name
        if name in ("", ".", "..") or PurePath(name).name != name or "\\" in name:
            yield f"run.name: got {name!r}, expected the name of a folder, without separators."
