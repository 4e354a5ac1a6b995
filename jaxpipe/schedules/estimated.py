"""What the ops of stages cost by their FLOPs alone, before anything has run."""

from collections.abc import Sequence

from jaxpipe.schedules.simulate import Costs

BACKWARD = 2
"""Forwards that a backward takes: for each product of a forward, two for its gradients."""


def estimated_costs(flops: Sequence[float], *, recomputes: bool = False) -> Costs:
    """Costs in FLOPs.

    Args:
      flops: of each stage's forward on a microbatch.
      recomputes: whether a backward begins with a forward.

    >>> estimated_costs([3, 4])
    Costs(F=[3, 4], B=[6, 8], I=[3, 4], W=[3, 4], hop=0.0, optimizer=0.0, tick=0.0)
    """
    again = int(recomputes)
    return Costs(
        F=list(flops),
        B=[each * (BACKWARD + again) for each in flops],
        I=[each * (1 + again) for each in flops],
        W=list(flops),
    )
