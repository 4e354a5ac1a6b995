"""What a train step does, so that its time can be told as a speed and as a utilisation."""

from typing import Literal, NamedTuple


class StepWork(NamedTuple):
    """A train step.

    Attributes:
      items: how many of `unit` it trains on, over the whole batch.
      unit: what is counted.
      flops: of its model: those of the forwards and backwards, without what is recomputed; None
        where nobody knows.
      peak: FLOP/s of all devices together; None where nobody knows.
      bubble: the share of time that ranks are idle in, by simulation; None where nobody knows.
    """

    items: int
    unit: Literal["tokens", "samples"] = "tokens"
    flops: float | None = None
    peak: float | None = None
    bubble: float | None = None

    def mfu(self, items_per_second: float) -> float | None:
        """Model FLOPs utilisation (arXiv:2204.02311, appendix B): the share of the peak.

        >>> StepWork(1000, flops=6e9, peak=1e12).mfu(50_000)
        0.3
        """
        if self.flops is None or self.peak is None:
            return None
        return items_per_second / self.items * self.flops / self.peak
