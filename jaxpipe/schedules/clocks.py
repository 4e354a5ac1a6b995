"""Timelines that several processes measured, each by a clock of its own -> one timeline.

No process knows another's clock, but nothing is used before it was made: what goes to a process
says how early its clock may start at most, and what comes back, how late.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from jaxpipe.schedules.simulate import Timeline
from jaxpipe.schedules.table import Action, Schedule, needs


def joined(schedule: Schedule, parts: Sequence[Timeline]) -> Timeline:
    """One timeline; where what passes between two processes leaves room, the middle of it is taken.

    Args:
      schedule: what ran, all of it.
      parts: what each process saw, in one unit of time: all actions of its ranks. Together they
        have each action once. One of nothing is left out.

    Returns:
      It begins with the first action, at 0.

    >>> from jaxpipe.schedules.families.gpipe import gpipe
    >>> table = gpipe(2, 1)
    >>> first, second = [[a for a in row if a] for row in table.rows]
    >>> one = Timeline({first[0]: 5, first[1]: 12}, {first[0]: 6, first[1]: 14}, 14, 0, (1, 1))
    >>> two = Timeline({second[0]: 0, second[1]: 1}, {second[0]: 1, second[1]: 3}, 3, 0, (1, 1))
    >>> found = joined(table, [one, two])
    >>> {str(action): start for action, start in sorted(found.starts.items())}
    {'0B0': 7.0, '0F0': 0.0, '1B0': 3.5, '1F0': 2.5}
    """
    parts = [part for part in parts if part.starts]
    home = {action: i for i, part in enumerate(parts) for action in part.starts}
    crossing = [
        (need, action)
        for action in home
        for group in needs(action, schedule.num_stages)
        for need in group
        if need in home and home[need] != home[action]
    ]
    shifts = {0: 0.0}
    while len(shifts) < len(parts):
        rooms = ((i, _room(i, parts, crossing, home, shifts)) for i in range(len(parts)))
        index, room = next((i, room) for i, room in rooms if i not in shifts and room)
        shifts[index] = sum(room) / len(room)
    starts = {action: parts[i].starts[action] + shifts[i] for action, i in home.items()}
    ends = {action: parts[i].ends[action] + shifts[i] for action, i in home.items()}
    first = min(starts.values())
    starts = {action: start - first for action, start in starts.items()}
    ends = {action: end - first for action, end in ends.items()}
    makespan = max(ends.values())
    work = sum(ends[action] - starts[action] for action in starts)
    idle = max(0.0, 1 - work / (makespan * schedule.num_ranks))
    return dataclasses.replace(
        parts[0], starts=starts, ends=ends, makespan=makespan, bubble_fraction=idle
    )


def _room(
    index: int,
    parts: Sequence[Timeline],
    crossing: Sequence[tuple[Action, Action]],
    home: Mapping[Action, int],
    shifts: Mapping[int, float],
) -> list[float]:
    """The least and the most that a part may be shifted by, as far as others say."""

    def bounds() -> Iterator[tuple[bool, float]]:
        for need, action in crossing:
            maker, taker = home[need], home[action]
            lag = parts[maker].ends[need] - parts[taker].starts[action]
            if taker == index and maker in shifts:
                yield True, shifts[maker] + lag
            elif maker == index and taker in shifts:
                yield False, shifts[taker] - lag

    found = list(bounds())
    least = [bound for is_least, bound in found if is_least]
    most = [bound for is_least, bound in found if not is_least]
    return ([max(least)] if least else []) + ([min(most)] if most else [])
