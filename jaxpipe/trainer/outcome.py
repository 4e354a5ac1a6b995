"""How a run ended."""

from pathlib import Path
from typing import Literal, NamedTuple


class Outcome(NamedTuple):
    """How a run ended.

    Attributes:
      ending: whether the last step was reached.
      step: steps that are done.
      checkpoint: the newest checkpoint; None for a run that was stopped before its first step.
      held_out_loss: nats per token, or class, on the held-out data; NaN for a run that was stopped.
      bigram_loss: the same of a byte-bigram model, on the same bytes; None for other tokens.
      held_out_accuracy: share of the held-out samples that were classified rightly; None for text.
    """

    ending: Literal["finished", "interrupted"]
    step: int
    checkpoint: Path | None
    held_out_loss: float
    bigram_loss: float | None
    held_out_accuracy: float | None = None
