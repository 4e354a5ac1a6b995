"""How parameters are changed, and how fast."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from jaxpipe.config.ranges import below, no_share, not_positive


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a linear warm-up and a cosine decay of the learning rate."""

    learning_rate: float = 3e-3
    """Highest learning rate, reached after the warm-up."""
    warmup_steps: int = 50
    """Steps in which the learning rate rises from near 0 to its highest."""
    final_fraction: float = 0.1
    """Learning rate of the last step, as a share of the highest, 0 to 1."""
    weight_decay: float = 0.1
    """Decay of the matrices (biases and norm scales do not decay)."""
    beta1: float = 0.9
    """Decay of the running mean of gradients, 0 to 1 (1 excluded)."""
    beta2: float = 0.95
    """Decay of the running mean of squared gradients, 0 to 1 (1 excluded)."""
    clip_norm: float | None = 1.0
    """Longest gradient, all layers taken together; longer ones are scaled down. null: never."""

    FREE = ("learning_rate", "warmup_steps", "final_fraction")

    def problems(self) -> Iterator[str]:
        """What is wrong with these settings, whatever the others are; a line each."""
        yield from no_share({"optimizer.beta1": self.beta1, "optimizer.beta2": self.beta2})
        yield from not_positive({"optimizer.learning_rate": self.learning_rate})
        yield from below(0, {"optimizer.warmup_steps": self.warmup_steps})
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            yield f"optimizer.weight_decay: got {self.weight_decay}, expected 0 or more."
        if not 0 <= self.final_fraction <= 1:
            yield f"optimizer.final_fraction: got {self.final_fraction}, expected 0 to 1."
        if self.clip_norm is not None and not self.clip_norm > 0:
            yield f"optimizer.clip_norm: got {self.clip_norm}, expected more than 0, or null."
