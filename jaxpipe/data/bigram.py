"""The baseline: a model that guesses a byte from the one before it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

_BYTES = 256


@dataclass(frozen=True)
class Bigram:
    """What is known about the next byte.

    Attributes:
      log_probabilities: float64 [256, 256], natural logarithm; the row is the byte before.
    """

    log_probabilities: np.ndarray

    def cross_entropy(self, batches: Iterable[Mapping[str, np.ndarray]]) -> float:
        """Mean over all positions of -log p(target | input), in nats per byte.

        Args:
          batches: each with "inputs" and "targets", integers [batch, time], and what these weigh,
            "weights" of the same shape.
        """
        total = count = 0.0
        for batch in batches:
            found = self.log_probabilities[batch["inputs"], batch["targets"]]
            total -= float((found * batch["weights"]).sum())
            count += float(batch["weights"].sum())
        return total / count


def fit_bigram(text: np.ndarray, alpha: float = 0.1) -> Bigram:
    """Counts the pairs of neighbours in `text`, uint8 [bytes], each pair starting at `alpha`.

    The smoothing is Lidstone's: p(b | a) = (count(ab) + alpha) / (count(a) + 256 alpha).

    >>> bigram = fit_bigram(np.frombuffer(b"abababab", np.uint8), alpha=1e-9)
    >>> round(float(np.exp(bigram.log_probabilities[ord("a"), ord("b")])), 3)
    1.0
    """
    pairs = text[:-1].astype(np.int64) * _BYTES + text[1:]
    counts = np.bincount(pairs, minlength=_BYTES**2).reshape(_BYTES, _BYTES) + alpha
    return Bigram(np.log(counts) - np.log(counts.sum(axis=1, keepdims=True)))
