"""What a run says of itself, and to whom."""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass

from jaxpipe.config.ranges import not_positive


@dataclass(frozen=True)
class MetricsConfig:
    """What a run says of itself, and to whom; JSON lines and the console always hear it."""

    tensorboard: bool = True
    """Whether metrics are written for TensorBoard too."""
    wandb: str | None = None
    """Project of Weights & Biases that metrics go to; null: none. WANDB_MODE=offline keeps them in
    the run's folder."""
    layer_norms: bool = False
    """Whether the norm of each layer's gradients is computed, and written as grad_norm/LAYER."""
    timeline: bool = True
    """Whether a finished run measures one more step, action by action, for its summary; the step
    changes nothing that is kept."""
    peak_flops: float | None = None
    """FLOP/s of one device, for the MFU; null: as its maker says, for devices that are known."""
    heartbeat: float = 30.0
    """Seconds of silence after which a run says what it is doing."""

    FREE = ("tensorboard", "wandb", "layer_norms", "timeline", "peak_flops", "heartbeat")

    def problems(self) -> Iterator[str]:
        """What is wrong with these settings, whatever the others are; a line each."""
        yield from not_positive(
            {"metrics.peak_flops": self.peak_flops, "metrics.heartbeat": self.heartbeat}
        )
        if self.wandb is None:
            return
        if not self.wandb.strip():
            yield "metrics.wandb: got no name, expected that of a project, or null."
        elif importlib.util.find_spec("wandb") is None:
            yield (
                f"metrics.wandb: got {self.wandb!r}, and the package wandb is not installed; pip"
                " install 'jaxpipe[wandb]', or set it to null."
            )
