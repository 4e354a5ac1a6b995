"""The text to train on: Python source files, split by a hash of their names.

The split depends on a file's name alone, so a file stays on its side when others come or go, and
nothing that was held out ever slips into training.
"""

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxpipe.errors import ConfigError

_NOT_THE_LIBRARY = frozenset({"site-packages", "dist-packages"})


@dataclass(frozen=True)
class Corpus:
    """Bytes to train on and bytes held out.

    Attributes:
      training: uint8 [bytes], the files one after another, in the order of their names.
      held_out: uint8 [bytes], likewise.
      num_files: files on both sides.
      fingerprint: hash of both sides, to tell whether two machines have the same text.
    """

    training: np.ndarray
    held_out: np.ndarray
    num_files: int
    fingerprint: str


def read_corpus(directory: str | Path | None = None, held_out_fraction: float = 0.05) -> Corpus:
    """The *.py files below a folder, split in two.

    Args:
      directory: the folder; by default the standard library of the running Python. Folders
          named site-packages or dist-packages are left out.
      held_out_fraction: share of the files that is held out, between 0 and 1.

    Raises:
      ConfigError: there is no such folder, or one side of the split is empty.
    """
    root = Path(sysconfig.get_path("stdlib") if directory is None else directory)
    if not root.is_dir():
        raise ConfigError(f"data.directory: {root} is no folder.")
    names = source_files(root)
    sides: dict[bool, list[bytes]] = {False: [], True: []}
    for name in names:
        sides[is_held_out(name, held_out_fraction)].append((root / name).read_bytes())
    training, held_out = b"".join(sides[False]), b"".join(sides[True])
    if not training or not held_out:
        raise ConfigError(
            f"data.directory: {root} has {len(names)} *.py files, {len(training):,} bytes to train"
            f" on and {len(held_out):,} held out; expected some of both. Use a folder with more"
            " files, or another data.held_out_fraction."
        )
    fingerprint = hashlib.sha256(training + b"\0" + held_out).hexdigest()
    return Corpus(_as_array(training), _as_array(held_out), len(names), fingerprint)


def source_files(root: Path) -> list[str]:
    """Names of the *.py files below `root`, relative to it, with `/`, in one order everywhere."""
    paths = (path.relative_to(root) for path in root.rglob("*.py") if path.is_file())
    return sorted(path.as_posix() for path in paths if _NOT_THE_LIBRARY.isdisjoint(path.parts))


def is_held_out(name: str, fraction: float) -> bool:
    """Whether a file belongs to the held-out side: its name's hash falls into that fraction.

    >>> is_held_out("json/decoder.py", 0.05), is_held_out("json/decoder.py", 0.95)
    (False, True)
    """
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < fraction


def _as_array(text: bytes) -> np.ndarray:
    return np.frombuffer(text, dtype=np.uint8)
