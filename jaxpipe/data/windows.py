"""Batches of windows on a text: random ones to train on, evenly spaced ones to evaluate on.

A batch is a pure function of (text, seed, step): nothing has to be stored to resume, and the order
does not depend on how many devices, or processes, read it.
"""

import numpy as np

from jaxpipe.errors import ConfigError

Batch = dict[str, np.ndarray]


def training_batch(
    text: np.ndarray,
    seed: int,
    step: int,
    batch_size: int,
    length: int,
    rows: slice = slice(None),
) -> Batch:
    """Windows at random places of `text`, the same for the same (seed, step) on every machine.

    Args:
      text: uint8 [bytes].
      seed: of the whole run.
      step: the step that the batch is for.
      batch_size: number of windows.
      length: bytes that a window shows.
      rows: which windows of the batch to make; by default all.

    Returns:
      "inputs" and "targets", int32 [rows, length]; a target is the byte after its input.

    Raises:
      ConfigError: the text is shorter than one window.

    >>> batch = training_batch(np.arange(100, dtype=np.uint8), 0, 1, batch_size=2, length=3)
    >>> bool((batch["targets"] == batch["inputs"] + 1).all())
    True
    """
    # Philox is counter based: any (seed, step) is reached at once, and streams never overlap.
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, step], np.uint64)))
    starts = generator.integers(0, _num_starts(text, length), size=batch_size)
    return _windows(text, starts[rows], length)


def held_out_batches(
    text: np.ndarray, num_batches: int, batch_size: int, length: int
) -> list[Batch]:
    """Windows spread evenly over `text`, from its first byte to its last.

    Args:
      text: uint8 [bytes].
      num_batches: number of batches; `num_batches * batch_size` windows in all.
      batch_size: windows per batch.
      length: bytes that a window shows.

    Returns:
      Batches as `training_batch` gives them.

    Raises:
      ConfigError: the text is shorter than one window.
    """
    last = _num_starts(text, length) - 1
    starts = np.linspace(0, last, num_batches * batch_size).astype(np.int64)
    return [_windows(text, part, length) for part in np.split(starts, num_batches)]


def _num_starts(text: np.ndarray, length: int) -> int:
    # A window and the byte after it: `length + 1` bytes.
    if len(text) <= length:
        raise ConfigError(
            f"data.sequence_length: got {length}, but there are only {len(text)} bytes of text;"
            " expected fewer than that. Use more text or shorter windows."
        )
    return len(text) - length


def _windows(text: np.ndarray, starts: np.ndarray, length: int) -> Batch:
    rows = text[starts[:, None] + np.arange(length + 1)].astype(np.int32)
    return {"inputs": rows[:, :-1], "targets": rows[:, 1:]}
