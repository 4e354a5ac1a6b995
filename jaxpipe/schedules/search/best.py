"""The best schedule that can be found for given costs within a memory limit."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from numbers import Real
from typing import TypeVar

from jaxpipe.errors import ScheduleError
from jaxpipe.schedules.families.names import NAMES, by_name
from jaxpipe.schedules.place import check_shape, loop, place, vee
from jaxpipe.schedules.search.bound import lower_bound
from jaxpipe.schedules.search.greedy import greedy, policies, variants
from jaxpipe.schedules.search.improve import improve
from jaxpipe.schedules.search.kept import Kept
from jaxpipe.schedules.search.task import SLACK, Orders, Task, Watch
from jaxpipe.schedules.simulate import Cost, Costs, Lockstep, check_costs, simulate
from jaxpipe.schedules.table import Op, Order, Schedule

# Policies whose relatives are tried, and list schedules that are compared to the end.
_RELATIVES = 6
_KEPT = 24
# Where there are many actions fewer policies are tried, so that a search takes seconds at any size:
# as many as list so many actions all together, twice, but not fewer than some. And moves for each.
_LISTED, _LEAST, _MOVES = 50_000, 8, 16

MOST_CHUNKS = 2
"""Stages on a rank that `auto` tries where nobody says how many: more of them compile longer."""

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search brought.

    Attributes:
      schedule: the best table; `verify` passes it.
      makespan: how long it takes, by `simulate`.
      lower_bound: no schedule takes less on free ranks, within the same memory.
      memory: the most that each rank keeps, in the unit of the search's `kept`.
      origin: the family that it is, or "search".
    """

    schedule: Schedule
    makespan: float
    lower_bound: float
    memory: tuple[float, ...]
    origin: str

    def __str__(self) -> str:
        memory = " ".join(f"{kept:g}" for kept in self.memory)
        return (
            f"{self.origin}: makespan {self.makespan:g}, at least {self.lower_bound:g};"
            f" kept by rank: {memory}"
        )


def search(
    placement: int | Sequence[int],
    num_microbatches: int,
    costs: Costs | None = None,
    *,
    kept: Kept | None = None,
    memory_limit: Cost | None = None,
    num_chunks: int = 1,
    split: bool = True,
    lockstep: Lockstep | None = None,
    steps: int = 400,
) -> Found:
    """Looks for the fastest table that keeps within memory.

    Candidates are every named family that fits, and list schedules by many policies, the best of
    which a local search improves on. So it is never slower than a family at the same memory. The
    same arguments give the same table, on any machine.

    Args:
      placement: stage -> rank; or a number of ranks, and then every placement that this many ranks
        can have with up to `num_chunks` stages each: loops, and the vee.
      num_microbatches: how many microbatches a batch is cut into.
      costs: what each op takes on a stage of `placement`. For a number of ranks: on each of that
        many equal parts of the model, or a sequence with one cost for each of any number of parts;
        stages then take several parts or a share of one.
      kept: what F and I keep, for the same stages or parts; without it, a microbatch counts 1 for
        each.
      memory_limit: the most that a rank may keep at once, one number or one for each rank; without
        it there is no limit. Values on their way between ranks come on top.
      num_chunks: the most stages on a rank, where `placement` is a number of ranks.
      split: whether backward may be split in two.
      lockstep: the loop that will run it; without it the ranks are free.
      steps: how many moves the local search tries, on each of a few tables.

    Raises:
      ScheduleError: nothing fits into memory: the message says the least that is needed. Or
        placement, counts or costs are out of range.

    >>> print(search(4, 8, Costs(F=1, B=2, I=1.2, W=0.8), memory_limit=5))
    search: makespan 27.4, at least 27; kept by rank: 5 5 5 5
    """
    costs, kept = costs or Costs(), kept or Kept()
    tasks = [
        _task(stages, num_microbatches, costs, kept, memory_limit, parts)
        for stages, parts in _placements(placement, num_chunks)
    ]
    _check_room(tasks)
    found: list[Found] = []
    for task in tasks:
        if _fits(task, task.kept.least(task.placement)):
            found += _candidates(task, split, lockstep, steps)
    bound = min(one.lower_bound for one in found)
    fastest = min(one.makespan for one in found) * (1 + SLACK)
    best = min((one for one in found if one.makespan <= fastest), key=lambda one: sum(one.memory))
    return dataclasses.replace(best, lower_bound=bound)


# --- What there is to schedule --------------------------------------------------------------------


def placements(num_ranks: int, num_chunks: int) -> list[tuple[int, ...]]:
    """Every placement with up to so many stages on each rank: loops, few stages first, and the vee.

    >>> placements(2, num_chunks=2)
    [(0, 1), (0, 1, 0, 1), (0, 1, 1, 0)]

    Raises:
      ScheduleError: a count below 1.
    """
    if num_chunks < 1:
        raise ScheduleError(f"got num_chunks={num_chunks}; expected at least 1.")
    found = [loop(num_ranks, chunks) for chunks in range(1, num_chunks + 1)]
    if num_chunks > 1:
        found.append(vee(num_ranks))
    return list(dict.fromkeys(found))


def _placements(
    placement: int | Sequence[int], num_chunks: int
) -> list[tuple[tuple[int, ...], int | None]]:
    """Placements to try, and of how many equal parts a single cost speaks (`None`: of stages)."""
    if isinstance(placement, int):
        return [(stages, placement) for stages in placements(placement, num_chunks)]
    check_shape(placement, 1 + max(placement, default=-1), 1, 0)
    return [(tuple(placement), None)]


def _task(
    placement: tuple[int, ...],
    num_microbatches: int,
    costs: Costs,
    kept: Kept,
    memory_limit: Cost | None,
    parts: int | None,
) -> Task:
    """Costs and limits, one for each stage and rank."""
    num_ranks, num_stages = 1 + max(placement), len(placement)
    check_shape(placement, num_ranks, num_microbatches, 0)
    cut = lambda cost, name: _cut(cost, num_stages, parts, name)
    costs = per_stage(costs, num_stages, parts)
    limit = float("inf") if memory_limit is None else memory_limit
    limits = _each(limit, num_ranks)
    if len(limits) != num_ranks or not all(one >= 0 for one in limits):
        raise ScheduleError(
            f"got memory_limit={memory_limit}; expected one number of 0 or more, or one for each"
            f" of {num_ranks} ranks."
        )
    kept = Kept(F=cut(kept.F, "kept.F"), I=cut(kept.I, "kept.I"))
    return Task(placement, num_microbatches, costs, kept, tuple(limits))


def per_stage(costs: Costs, num_stages: int, num_parts: int | None) -> Costs:
    """Costs of equal parts of a model as costs of its stages.

    A stage takes several parts, or a share of one.

    >>> per_stage(Costs(F=1, B=[2, 4]), num_stages=4, num_parts=2).B
    (1.0, 1.0, 2.0, 2.0)
    >>> per_stage(Costs(F=1), num_stages=4, num_parts=2).F
    0.5

    Args:
      costs: a number for each part, or a sequence for any number of them.
      num_stages: how many stages there are.
      num_parts: of how many equal parts a number speaks; `None`: of stages.

    Raises:
      ScheduleError: costs are negative, or there are so many of them that stages would have to
        take pieces of several parts.
    """
    each = {
        name: _cut(getattr(costs, name), num_stages, num_parts, f"costs.{name}")
        for name in (*Op, "optimizer")
    }
    costs = dataclasses.replace(costs, **each)
    check_costs(costs, num_stages)
    return costs


def _cut(cost: Cost, num_stages: int, parts: int | None, name: str) -> Cost:
    """One cost for each stage; if it is for parts, what these cost together, or a share of one."""
    each = _each(cost, 1)
    if not all(one >= 0 for one in each):
        raise ScheduleError(f"{name} is {cost}; expected 0 or more.")
    if isinstance(cost, Real):
        return each[0] * (parts or num_stages) / num_stages
    if len(each) == num_stages:
        return tuple(each)
    if parts and each and num_stages % len(each) == 0:
        shares = num_stages // len(each)
        return tuple(one / shares for one in each for _ in range(shares))
    if parts and each and len(each) % num_stages == 0:
        several = len(each) // num_stages
        return tuple(sum(each[s * several : (s + 1) * several]) for s in range(num_stages))
    expected = f"one number, or one for each of {num_stages} stages"
    if parts:
        expected += ", or for a multiple or divisor of that"
    raise ScheduleError(f"{name} has {len(each)} costs; expected {expected}.")


def _each(cost: Cost, number: int) -> list[float]:
    """One for each."""
    single = [cost] * number if isinstance(cost, Real) else cost
    return [float(one) for one in single]  # pyright: ignore


def _check_room(tasks: Sequence[Task]) -> None:
    """Some placement fits into memory, be it with one microbatch at a time."""
    least = [task.kept.least(task.placement) for task in tasks]
    if any(_fits(task, needed) for task, needed in zip(tasks, least, strict=True)):
        return
    task, needed = tasks[0], least[0]
    rank = next(r for r, limit in enumerate(task.limits) if needed[r] > limit * (1 + SLACK))
    raise ScheduleError(
        f"no schedule fits: rank {rank} may keep {task.limits[rank]:g}, but one microbatch in all"
        f" of its stages takes {needed[rank]:g}. Allow at least that (by rank:"
        f" {', '.join(f'{one:g}' for one in needed)}), use smaller microbatches, recompute more, or"
        " use more ranks."
    )


def _fits(task: Task, peaks: Iterable[float]) -> bool:
    pairs = zip(peaks, task.limits, strict=True)
    return all(peak <= limit * (1 + SLACK) for peak, limit in pairs)


# --- Candidates -----------------------------------------------------------------------------------


def _candidates(task: Task, split: bool, lockstep: Lockstep | None, steps: int) -> Iterator[Found]:
    """Everything worth a comparison: families first, then what was searched."""
    limits = None if any(map(math.isinf, task.limits)) else task.limits
    bound = lower_bound(
        task.placement,
        task.num_microbatches,
        task.costs,
        kept=task.kept,
        limits=limits,
        split=split,
    )
    families = [table for table in _families(task, split) if _fits(task, task.kept.peaks(table))]

    def weigh(table: Schedule, origin: str) -> Found:
        makespan = simulate(table, task.costs, lockstep).makespan
        return Found(table, makespan, bound, task.kept.peaks(table), origin)

    known = [weigh(table, table.name) for table in families]
    yield from known
    if any(one.makespan <= bound * (1 + SLACK) for one in known):
        return  # nothing is faster
    for order in _orders(task, [table.order for table in families], split, bound, steps):
        yield from (weigh(table, "search") for table in _tables(task, order, lockstep))


def _families(task: Task, split: bool) -> Iterator[Schedule]:
    """The named schedules that have these stages on these ranks."""
    chunks = len(task.placement) // task.num_ranks
    for name in NAMES:
        try:
            table = by_name(name, task.num_ranks, task.num_microbatches, num_chunks=chunks)
        except ScheduleError:
            continue  # the family has other numbers of stages
        whole = all(action.op in (Op.F, Op.B) for action in table.ticks())
        if table.placement == task.placement and (split or whole):
            yield table


def _tables(task: Task, order: Order, lockstep: Lockstep | None) -> list[Schedule]:
    """An order on ticks; for a loop also with more time to travel, with and without overlap."""
    put = lambda latency: place(
        order, task.placement, task.num_microbatches, name="auto", latency=latency
    )
    if lockstep is None:
        return [put(0)]
    return [put(0), put(1), dataclasses.replace(put(1), latency=0)]


def _orders(
    task: Task, families: Sequence[Orders], split: bool, bound: float, steps: int
) -> list[Orders]:
    """The best list schedules, and what a local search makes of them and of the families."""
    watch = Watch(task)
    affordable = max(_LEAST, _LISTED // (len(Op) * len(task.placement) * task.num_microbatches))
    tried = _some([*policies(task, split)], affordable)
    first = _ranked(watch, ((greedy(task, policy), policy) for policy in tried))
    relatives = dict.fromkeys(
        relative for _, policy in first[:_RELATIVES] for relative in variants(policy)
    )
    second = ((greedy(task, policy), policy) for policy in _some([*relatives], affordable))
    best = [order for order, _ in _ranked(watch, itertools.chain(first, second))]
    known = [order for order, _ in _ranked(watch, ((order, None) for order in families))]
    steps = min(steps, _MOVES * affordable)
    improved = [improve(watch, order, steps=steps, goal=bound) for order in (*best[:3], *known[:2])]
    return best[: min(_KEPT, affordable)] + improved


def _some(items: Sequence[_T], most: int) -> Sequence[_T]:
    """At most so many of them, evenly spread."""
    count = min(most, len(items))
    return [items[number * len(items) // count] for number in range(count)]


def _ranked(watch: Watch, orders: Iterable[tuple[Orders, _T]]) -> list[tuple[Orders, _T]]:
    """Orders and what they came from, the fastest first, each once."""
    unique = {tuple(map(tuple, order)): (order, origin) for order, origin in orders}
    scores = {}
    for key, (order, _) in unique.items():
        ends = watch.ends(order)
        if ends is not None:
            scores[key] = watch.score(order, ends)
    return [unique[key] for key in sorted(scores, key=lambda key: scores[key])]
