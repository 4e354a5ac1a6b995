"""When what is made on one rank and read on another crosses over: at as few ticks as possible.

A rank keeps its latest result that goes to another rank in an outbox, one for each flow: forwards,
made by F, and backwards, made by B or I. What is sent at tick s and read at tick r may land at the
end of any tick from s + latency to r - 1, as long as the outbox still held it when it left, latency
ticks before that tick ended. A tick at whose end something lands is a meeting.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from jaxpipe.errors import ScheduleError
from jaxpipe.schedules.table import Action, Op, Schedule, needs


class Hop(NamedTuple):
    """A value on its way from one stage to the next; within a rank it lands where it is made.

    Attributes:
      maker: the action whose result it is.
      reader: the action that needs it.
      sent: the tick of the maker.
      landed: the tick at whose end it is there.
      source: the rank of the maker.
      target: the rank of the reader.
    """

    maker: Action
    reader: Action
    sent: int
    landed: int
    source: int
    target: int

    @property
    def crosses(self) -> bool:
        """Whether it goes from one rank to another."""
        return self.source != self.target

    @property
    def forwards(self) -> bool:
        """Whether it flows with F, and not with B or I."""
        return self.maker.op == Op.F


class Permute(NamedTuple):
    """Values that travel together: no rank sends twice, and none receives twice.

    Attributes:
      forwards: which outbox it carries.
      links: (from rank, to rank), sorted.
    """

    forwards: bool
    links: tuple[tuple[int, int], ...]


class _Window(NamedTuple):
    """The ticks at whose end a value may land."""

    first: int
    last: int


def hops(schedule: Schedule, ticks: Mapping[Action, int] | None = None) -> list[Hop]:
    """Every value that passes from a stage to the next, landed so that ranks meet seldom.

    The number of ticks with a meeting is the least there can be: each value has a window of ticks,
    and windows are stabbed greedily by their last tick. Among those ticks every pair of ranks uses
    as few as it can, and of the ticks that are as good, one where no rank hears twice in a flow.
    Where it must hear twice, `permutes` uses one permute more: that is cheaper than a tick more.

    Args:
      schedule: a schedule that passes `verify`.
      ticks: when each action runs, where that is not what the table says.

    Raises:
      ScheduleError: a value is read that is not made, or not in time.

    >>> from jaxpipe.schedules.families.one_f_one_b import one_f_one_b
    >>> [(str(hop.maker), hop.sent, hop.landed) for hop in hops(one_f_one_b(2, 3))]
    [('1B0', 2, 2), ('1B1', 4, 4), ('1B2', 6, 6), ('0F0', 0, 0), ('0F1', 1, 2), ('0F2', 4, 4)]
    """
    ticks = schedule.ticks() if ticks is None else ticks
    made = list(_made(schedule, ticks))
    windows = _windows(made, ticks, schedule.latency)
    # Two sets of meetings, both of the least size: as late as can be, and as early as can be.
    late = _stab(windows.values())
    early = {-t for t in _stab(_Window(-w.last, -w.first) for w in windows.values())}
    landings = [_land(made, windows, chosen) for chosen in (late, early)]
    return min(landings, key=_num_pairs)


def permutes(landed: Iterable[Hop]) -> dict[int, tuple[Permute, ...]]:
    """What travels at each tick that has a meeting: one permute a flow, two if a rank hears twice.

    A rank hears twice in one flow where stages come back over the ranks, as on a vee.

    >>> from jaxpipe.schedules.families.gpipe import gpipe
    >>> permutes(hops(gpipe(2, 1)))
    {0: (Permute(forwards=True, links=((0, 1),)),), 2: (Permute(forwards=False, links=((1, 0),)),)}
    """
    links: dict[int, set[tuple[bool, int, int]]] = {}
    for hop in landed:
        if hop.crosses:
            links.setdefault(hop.landed, set()).add((hop.forwards, hop.source, hop.target))
    found = {}
    for tick in sorted(links):
        found[tick] = tuple(
            Permute(forwards, group)
            for forwards in (True, False)
            for group in _split([(a, b) for flow, a, b in links[tick] if flow == forwards])
        )
    return found


def steady(landed: Iterable[Hop]) -> tuple[Permute, ...]:
    """Every link that is ever used, for meetings that are alike at every tick.

    >>> from jaxpipe.schedules.families.gpipe import gpipe
    >>> steady(hops(gpipe(2, 4)))
    (Permute(forwards=True, links=((0, 1),)), Permute(forwards=False, links=((1, 0),)))
    """
    return permutes(hop._replace(landed=0) for hop in landed).get(0, ())


def _split(links: Sequence[tuple[int, int]]) -> list[tuple[tuple[int, int], ...]]:
    """Groups in which no rank sends or receives twice; links to higher ranks come first."""
    groups: list[list[tuple[int, int]]] = []
    for link in sorted(links, key=lambda link: (link[1] < link[0], link)):
        free = (g for g in groups if all(link[0] != a and link[1] != b for a, b in g))
        group = next(free, None)
        if group is None:
            groups.append(group := [])
        group.append(link)
    return [tuple(sorted(group)) for group in groups]


def _made(schedule: Schedule, ticks: Mapping[Action, int]) -> Iterator[Hop]:
    """Every value that passes from a stage to the next, landed as it is made."""
    for reader in ticks:
        for group in needs(reader, schedule.num_stages):
            maker = next((action for action in group if action in ticks), None)
            if maker is None:
                raise ScheduleError(
                    f"{reader} needs {' or '.join(map(str, group))}, which is nowhere in the"
                    f" schedule {schedule.name!r}. `verify` says what to do."
                )
            if maker.stage == reader.stage:
                continue  # kept by the rank for the stage itself
            source, target = (schedule.placement[action.stage] for action in (maker, reader))
            yield Hop(maker, reader, ticks[maker], ticks[maker], source, target)


def _windows(
    made: Iterable[Hop], ticks: Mapping[Action, int], latency: int
) -> dict[Action, _Window]:
    """By reader: from when and until when each crossing value may land.

    An outbox is written by every action of its flow, also where the next stage is the rank's own.
    """
    outboxes: dict[tuple[int, bool], list[Hop]] = {}
    for hop in made:
        outboxes.setdefault((hop.source, hop.forwards), []).append(hop)
    windows = {}
    for sent in outboxes.values():
        sent.sort(key=lambda hop: hop.sent)
        for hop, following in zip(sent, [*sent[1:], None], strict=True):
            last = ticks[hop.reader] - 1
            if following is not None:
                last = min(last, following.sent - 1 + latency)
            if not hop.crosses:
                continue
            if last < hop.sent + latency:
                raise ScheduleError(
                    f"{hop.reader} runs at tick {ticks[hop.reader]}, before {hop.maker} of tick"
                    f" {hop.sent} could be there. `verify` says what to do."
                )
            windows[hop.reader] = _Window(hop.sent + latency, last)
    return windows


def _stab(windows: Iterable[_Window]) -> set[int]:
    """The fewest ticks that touch every window, each as late as can be."""
    chosen: list[int] = []
    for window in sorted(windows, key=lambda window: window.last):
        if not chosen or chosen[-1] < window.first:
            chosen.append(window.last)
    return set(chosen)


def _land(
    made: Sequence[Hop], windows: Mapping[Action, _Window], chosen: Iterable[int]
) -> list[Hop]:
    """Lands every crossing value at one of the chosen ticks: for each pair of ranks at few."""
    chosen = sorted(chosen)
    met: set[tuple[frozenset[int], int]] = set()
    heard: set[tuple[int, bool, int]] = set()
    landed: dict[Action, int] = {}
    for hop in sorted((hop for hop in made if hop.crosses), key=lambda h: windows[h.reader].last):
        window, pair = windows[hop.reader], frozenset((hop.source, hop.target))
        tick = min(
            (tick for tick in chosen if window.first <= tick <= window.last),
            key=lambda t: ((pair, t) not in met, (hop.target, hop.forwards, t) in heard, -t),
        )
        met.add((pair, tick))
        heard.add((hop.target, hop.forwards, tick))
        landed[hop.reader] = tick
    return [hop._replace(landed=landed.get(hop.reader, hop.landed)) for hop in made]


def _num_pairs(landed: Iterable[Hop]) -> int:
    """How often two ranks meet."""
    return len({(h.landed, frozenset((h.source, h.target))) for h in landed if h.crosses})
