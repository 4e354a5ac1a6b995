"""Files that commands write: none takes another's place unless that is asked for."""

from pathlib import Path


def taken(out: Path, overwrite: bool) -> str | None:
    """What is wrong with a place to write to; None if it may be written.

    Args:
      out: the file.
      overwrite: whether a file that is there may go.
    """
    if overwrite or not out.exists():
        return None
    return f"got --out {out}, which is there already; take another name, or say --overwrite"
