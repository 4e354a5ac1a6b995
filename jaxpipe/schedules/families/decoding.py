"""Decoding: forwards of one token after the other, each of which the last stage makes."""

from collections.abc import Sequence

from jaxpipe.schedules.place import place
from jaxpipe.schedules.table import Action, Op, Schedule


def decoding(num_microbatches: int, placement: Sequence[int], num_tokens: int) -> Schedule:
    """Forwards of `num_tokens` tokens in turn: the first stage waits for what the last one makes.

    That is a forward through a network of `num_tokens` times as many stages, whose placement begins
    again with each token: stage `s` of token `k` is stage `k * len(placement) + s`. With as many
    microbatches as there are ranks, or more, no rank is idle but at the beginning and the end.

    Args:
      num_microbatches: groups of sequences, which depend on themselves alone.
      placement: stage of the model -> rank.
      num_tokens: how many tokens each sequence goes on by.

    Raises:
      ScheduleError: a count below 1, or a placement whose last stage is not on the rank of its
        first or on a neighbour, where there are several tokens.

    >>> print(decoding(2, (0, 1), num_tokens=3))
    decode: 2 ranks, 6 stages, 2 microbatches, 7 ticks; bubble 14.3% at costs F=1
    rank 0 | 0F0 0F1 2F0 2F1 4F0 4F1 .   |
    rank 1 | .   1F0 1F1 3F0 3F1 5F0 5F1 |
    """
    unrolled = tuple(placement) * num_tokens
    order = [
        [
            Action(stage, Op.F, m)
            for stage, rank in enumerate(unrolled)
            if rank == here
            for m in range(num_microbatches)
        ]
        for here in range(1 + max(placement))
    ]
    return place(order, unrolled, num_microbatches, name="decode")
