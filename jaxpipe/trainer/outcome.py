"""How a run ended."""

from pathlib import Path
from typing import Literal, NamedTuple


class Outcome(NamedTuple):
    """How a run ended.

    Attributes:
      ending: whether the last step was reached.
      step: steps that are done.
      checkpoint: the newest checkpoint.
      held_out_loss: nats per token on the held-out data; NaN for a run that was stopped.
      bigram_loss: the same of a byte-bigram model, on the same bytes; None for other tokens.
    """

    ending: Literal["finished", "interrupted"]
    step: int
    checkpoint: Path
    held_out_loss: float
    bigram_loss: float | None
