"""The last stage's forward and backward as one action, so that nothing is kept between them."""

import itertools

from jaxpipe.schedules.table import Action, Op, Schedule


def fusible(schedule: Schedule) -> dict[Action, Action]:
    """{B: F} of the last stage, where every B directly follows its F; else nothing.

    All or none: a program with both sorts would have one branch more to compile.

    >>> from jaxpipe.schedules.families.one_f_one_b import one_f_one_b
    >>> {str(b): str(f) for b, f in fusible(one_f_one_b(2, 2)).items()}
    {'1B0': '1F0', '1B1': '1F1'}
    """
    last = schedule.num_stages - 1
    row = schedule.order[schedule.placement[last]]
    pairs = {b: f for f, b in itertools.pairwise(row) if (b.stage, b.op) == (last, Op.B)}
    follows = all(f == Action(last, Op.F, b.microbatch) for b, f in pairs.items())
    return pairs if follows and len(pairs) == schedule.num_microbatches else {}


def fused_ticks(schedule: Schedule) -> dict[Action, int]:
    """The tick of each action; a forward that is fused runs when its backward does."""
    ticks = schedule.ticks()
    return ticks | {forward: ticks[b] for b, forward in fusible(schedule).items()}
