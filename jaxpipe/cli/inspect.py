"""`jaxpipe inspect CHECKPOINT` and `jaxpipe verify CHECKPOINT`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import rich
import tyro
from rich.table import Table


@dataclass(frozen=True)
class Inspect:
    """Show what a checkpoint holds: its layers, their sizes, the run that wrote it, its health.

    An example: jaxpipe inspect runs/gpt-stdlib
    """

    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
    """A checkpoint, or the folder of a run or of its checkpoints, of which the newest is shown."""

    def run(self) -> int:
        """Prints tables, and returns the exit code: 1 for a checkpoint that is damaged."""
        from jaxpipe.checkpoint import inspect_checkpoint

        path, manifest, layers, problems = inspect_checkpoint(self.path)
        about = manifest.metadata
        print(f"{path}\nstep {manifest.step}, {len(manifest.files)} files,", end=" ")
        print(f"{manifest.num_bytes:,} bytes")
        for name in ("schedule", "mesh", "partition", "metric", "data"):
            if about.get(name) is not None:
                print(f"{name}: {about[name]}")
        for name, version in about.get("versions", {}).items():
            print(f"{name}: {version}")
        table = Table("layer", "parameters", "bytes", "of the rest, bytes", title="layers")
        for column in table.columns[1:]:
            column.justify = "right"
        for layer, sizes in layers.items():
            table.add_row(layer, *(f"{size:,}" for size in sizes))
        rich.print(table)
        print(_health(problems, "no file is missing or of another size; `verify` reads them"))
        return 1 if problems else 0


@dataclass(frozen=True)
class Verify:
    """Read a checkpoint, every byte, and say whether it is as it was written.

    An example: jaxpipe verify runs/gpt-stdlib
    """

    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
    """A checkpoint, or the folder of a run or of its checkpoints, all of which are read."""

    def run(self) -> int:
        """Prints a line for each checkpoint, and returns the exit code: 1 if one is damaged."""
        from jaxpipe.checkpoint import verify_checkpoints

        bad = 0
        for path, problems in verify_checkpoints(self.path):
            bad += bool(problems)
            print(f"{path}: {_health(problems, 'sound')}")
        return 1 if bad else 0


def _health(problems: list[str], sound: str) -> str:
    return "DAMAGED:" + "".join(f"\n  {problem}" for problem in problems) if problems else sound
