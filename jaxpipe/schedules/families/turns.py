"""Orders that several families share: a forward and a backward in turn, in rounds, in blocks."""

from collections.abc import Sequence
from typing import TypeAlias

from jaxpipe.schedules.table import Action, Op

Blocks: TypeAlias = Sequence[tuple[int, int, int, int]]
"""By rank, when microbatch 0 runs: F of the stage on the way down, F of the stage on the way back,
the backward of that, the backward of the first."""


def _alternate(
    forwards: Sequence[Action], backwards: Sequence[Action], warmup: int
) -> list[Action]:
    """Some forwards to warm up, then a forward and a backward in turn, then what is left.

    >>> from jaxpipe.schedules.table import Op
    >>> forwards, backwards = ([Action(0, op, m) for m in range(3)] for op in (Op.F, Op.B))
    >>> print(*_alternate(forwards, backwards, warmup=1))
    0F0 0F1 0B0 0F2 0B1 0B2
    """
    warmup = min(warmup, len(forwards))
    pairs = zip(forwards[warmup:], backwards, strict=False)
    steady = [action for pair in pairs for action in pair]
    return [*forwards[:warmup], *steady, *backwards[len(forwards) - warmup :]]


def in_rounds(
    num_ranks: int, num_chunks: int, rounds: Sequence[Sequence[int]], *, op: Op, lead: int
) -> list[list[Action]]:
    """Each round of microbatches goes through all chunks of a rank before the next one comes.

    Args:
      num_ranks: S; rank r owns the stages r, r + S, r + 2S ...
      num_chunks: how many of them.
      rounds: the microbatches, cut into rounds.
      op: the backward, B or I.
      lead: by how many forwards more than the next rank a rank is ahead of its backwards.
    """
    order = []
    for rank in range(num_ranks):
        stages = range(rank, num_chunks * num_ranks, num_ranks)
        forwards = [Action(s, Op.F, m) for part in rounds for s in stages for m in part]
        backwards = [Action(s, op, m) for part in rounds for s in reversed(stages) for m in part]
        warmup = (num_chunks - 1) * max(map(len, rounds), default=0) + lead * (num_ranks - 1 - rank)
        order.append(_alternate(forwards, backwards, warmup))
    return order


def in_blocks(blocks: Blocks, num_microbatches: int, *, op: Op) -> list[list[Action]]:
    """On a V of stages, every microbatch does what the one before it did, six ticks later.

    Six ticks are what a rank works for a microbatch: F, I and W of its two stages, or F and a B
    that takes two.

    Args:
      blocks: when microbatch 0 runs.
      num_microbatches: how many microbatches there are.
      op: the backward, B or I.
    """
    order = []
    for rank, block in enumerate(blocks):
        back = 2 * len(blocks) - 1 - rank
        parts = [(rank, Op.F), (back, Op.F), (back, op), (rank, op)]
        ticks = {
            Action(stage, part, m): tick + 6 * m
            for m in range(num_microbatches)
            for tick, (stage, part) in zip(block, parts, strict=True)
        }
        order.append(sorted(ticks, key=lambda action: ticks[action]))
    return order
