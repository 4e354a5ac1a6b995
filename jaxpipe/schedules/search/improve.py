"""Makes an order faster by moving actions of its critical path: deterministic, no clock."""

import random
from collections.abc import Sequence

from jaxpipe.schedules.search.task import SLACK, Orders, Task, Watch
from jaxpipe.schedules.table import Action, Op, Order


def improve(watch: Watch, order: Order, *, steps: int, goal: float) -> Orders:
    """An order that is at least as fast on free ranks, and keeps within the limits.

    What sets the makespan is a chain of actions without a pause between them. Each step takes a
    place in it where two actions follow each other only because they share a rank, and moves one
    some places before or behind the other; a step that makes nothing slower stays.

    Args:
      watch: knows what is scheduled.
      order: where to start; right, and within the limits.
      steps: how many moves to try.
      goal: a makespan at which to stop, such as the lower bound.
    """
    draw, task = random.Random(0), watch.task
    now = best = [list(actions) for actions in order]
    ends = watch.ends(now)
    if ends is None:
        return best
    score = best_score = watch.score(now, ends)
    for _ in range(steps):
        places = watch.critical(now, ends, draw)
        if not places or best_score[0] <= goal * (1 + SLACK):
            break  # nothing but needs holds it up, or it is as fast as can be
        rank, actions = _move(task, now, places, draw)
        if not watch.fits(rank, actions):
            continue
        moved = [*now[:rank], actions, *now[rank + 1 :]]
        new_ends = watch.ends(moved)
        if new_ends is None:
            continue
        new_score = watch.score(moved, new_ends)
        if new_score <= score:
            now, ends, score = moved, new_ends, new_score
            if score < best_score:
                best, best_score = now, score
    return best


def _move(
    task: Task, order: Orders, places: Sequence[tuple[int, int]], draw: random.Random
) -> tuple[int, list[Action]]:
    """A rank, and its actions with one of them moved."""
    rank, at = draw.choice(places)  # the actions at `at - 1` and `at` follow each other
    actions = list(order[rank])
    reach = draw.choice((1, 1, 2, 3, 5, 8))
    if draw.random() < 0.5:
        actions.insert(max(0, at - reach), actions.pop(at))
    else:
        actions.insert(min(len(actions), at - 1 + reach), actions.pop(at - 1))
    if draw.random() < 0.2:
        actions = _join(task, actions)
    return rank, actions


def _join(task: Task, actions: Sequence[Action]) -> list[Action]:
    """Makes I and W that follow each other one B, where that costs less."""
    joined: list[Action] = []
    for action in actions:
        stage, op, m = action
        if op == Op.W and joined and joined[-1] == (stage, Op.I, m):
            whole = Action(stage, Op.B, m)
            if task.costs.of(whole) < task.costs.of(action) + task.costs.of(joined[-1]):
                joined[-1] = whole
                continue
        joined.append(action)
    return joined
