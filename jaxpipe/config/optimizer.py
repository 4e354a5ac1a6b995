"""How parameters are changed, and how fast."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from jaxpipe.config.ranges import below, no_share, not_positive
from jaxpipe.errors import nearest

# What each optimizer has besides a learning rate, and what is usual for it.
OPTIMIZERS: dict[str, dict[str, float | bool]] = {
    "adamw": dict(weight_decay=0.1, beta1=0.9, beta2=0.95, epsilon=1e-8, nesterov=False),
    "adam": dict(beta1=0.9, beta2=0.999, epsilon=1e-8, nesterov=False),
    "sgd": dict(weight_decay=0.0, momentum=0.9, nesterov=False),
    "lion": dict(weight_decay=0.1, beta1=0.9, beta2=0.99),
    "adafactor": dict(momentum=0.0),
    "lamb": dict(weight_decay=0.1, beta1=0.9, beta2=0.999, epsilon=1e-6),
    "lars": dict(weight_decay=1e-4, momentum=0.9, nesterov=False),
    "muon": dict(
        weight_decay=0.1, beta1=0.9, beta2=0.95, momentum=0.95, epsilon=1e-8, nesterov=True
    ),
}
SCHEDULES: dict[str, dict[str, float | bool]] = {
    "cosine": dict(final_fraction=0.1),
    "linear": dict(final_fraction=0.1),
    "constant": {},
    "wsd": dict(final_fraction=0.0, decay_fraction=0.2),
    "inverse-sqrt": {},
}


@dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer, and a learning rate that rises in a line and then follows a schedule."""

    name: str = "adamw"
    """adamw, adam, sgd, lion, adafactor, lamb, lars, or muon, which is for the matrices of the
    blocks, with adamw for the rest."""
    learning_rate: float = 3e-3
    """Highest learning rate, reached after the warm-up. Lion wants a third to a tenth of AdamW's;
    muon takes the same (arXiv:2502.16982)."""
    schedule: str = "cosine"
    """How the learning rate goes on after the warm-up: cosine or linear, down to final_fraction;
    constant; wsd, constant and then down within decay_fraction of the steps, as 1 - sqrt
    (arXiv:2405.18392); inverse-sqrt, as sqrt(warmup_steps / step)."""
    warmup_steps: int = 50
    """Steps in which the learning rate rises from near 0 to its highest."""
    final_fraction: float | None = None
    """Learning rate of the last step, as a share of the highest, 0 to 1; null: 0.1, for wsd 0. Not
    for constant and inverse-sqrt."""
    decay_fraction: float | None = None
    """For wsd: share of all steps in which the learning rate goes down, 0 to 1; null: 0.2."""
    weight_decay: float | None = None
    """Decay of the matrices (biases and norm scales do not decay), times the learning rate; for sgd
    and lars a part of the gradients. null: 0.1 for adamw, lion, lamb and muon (of blocks alone
    there), 0.0001 for lars, 0 for sgd. The others have none."""
    beta1: float | None = None
    """Decay of the running mean of gradients, 0 to 1 (1 excluded), for adamw, adam, lion, lamb and
    muon's rest; null: 0.9."""
    beta2: float | None = None
    """Decay of the running mean of squared gradients, likewise; null: 0.95 for adamw and muon, 0.99
    for lion (whose mean is of gradients), 0.999 for adam and lamb."""
    momentum: float | None = None
    """Decay of the velocity, 0 to 1 (1 excluded), for sgd, lars, muon and adafactor; null: 0.9, for
    muon 0.95, for adafactor 0, which is none."""
    nesterov: bool | None = None
    """Whether the step looks ahead along the velocity, or mean, for adamw, adam, sgd, lars and
    muon; null: for muon alone."""
    epsilon: float | None = None
    """What is added to the root of the squares, for adamw, adam, lamb and muon's rest; null: 1e-8,
    for lamb 1e-6."""
    clip_norm: float | None = 1.0
    """Longest gradient, all layers taken together; longer ones are scaled down. null: never."""

    FREE = ("learning_rate", "schedule", "warmup_steps", "final_fraction", "decay_fraction")

    def setting(self, field: str) -> float:
        """A field as it is, or as is usual for the optimizer or the schedule where it is null.

        >>> OptimizerConfig(name="lion").setting("beta2")
        0.99
        """
        given = getattr(self, field)
        return (OPTIMIZERS[self.name] | SCHEDULES[self.schedule])[field] if given is None else given

    def problems(self) -> Iterator[str]:
        """What is wrong with these settings, whatever the others are; a line each."""
        yield from not_positive(
            {
                "optimizer.learning_rate": self.learning_rate,
                "optimizer.epsilon": self.epsilon,
                "optimizer.clip_norm": self.clip_norm,
            }
        )
        yield from below(0, {"optimizer.warmup_steps": self.warmup_steps})
        shares = {
            "optimizer.beta1": self.beta1,
            "optimizer.beta2": self.beta2,
            "optimizer.momentum": self.momentum,
        }
        yield from no_share({name: x for name, x in shares.items() if x is not None})
        decay = self.weight_decay
        if decay is not None and not (math.isfinite(decay) and decay >= 0):
            yield f"optimizer.weight_decay: got {decay}, expected 0 or more."
        for name in ("final_fraction", "decay_fraction"):
            share = getattr(self, name)
            if share is not None and not 0 <= share <= 1:
                yield f"optimizer.{name}: got {share}, expected 0 to 1."
        yield from self._meaningless("name", OPTIMIZERS)
        yield from self._meaningless("schedule", SCHEDULES)

    def _meaningless(self, which: str, known: dict[str, dict[str, float | bool]]) -> Iterator[str]:
        """What the chosen optimizer, or schedule, has no use for."""
        chosen = getattr(self, which)
        if chosen not in known:
            yield f"optimizer.{which}: unknown {chosen!r}; {nearest(chosen, known)}"
            return
        for field in sorted({field for fields in known.values() for field in fields}):
            got = getattr(self, field)
            if got is not None and field not in known[chosen]:
                has = ", ".join(known[chosen]) or "nothing of that sort"
                yield f"optimizer.{field}: got {got}; {chosen} has none, but {has}. Leave it out."
