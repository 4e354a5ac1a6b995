"""Costs as text: `F=1 B=2` in drawings, `F=1,I=1.2,hop=0.1` on the command line."""

import dataclasses
from collections.abc import Collection
from numbers import Real

from jaxpipe.errors import ScheduleError, nearest
from jaxpipe.schedules.simulate import Cost, Costs
from jaxpipe.schedules.table import Op

_ONE_FOR_ALL = ("hop", "tick")


def describe_costs(costs: Costs, ops: Collection[Op] = tuple(Op)) -> str:
    """What these ops cost, and whatever else costs anything.

    >>> describe_costs(Costs(F=[1, 1, 3], hop=0.5), [Op.F, Op.B])
    'F=1:1:3 B=2 hop=0.5'
    """
    parts = []
    for field in dataclasses.fields(costs):
        each = _each(getattr(costs, field.name))
        if field.name in ops or (field.name not in tuple(Op) and any(each)):
            parts.append(f"{field.name}={':'.join(f'{cost:g}' for cost in each)}")
    return " ".join(parts)


def parse_costs(text: str) -> Costs:
    """Reads costs with commas or spaces between them; for unequal stages, `F=1:1:1:3`.

    What is left out has its default, except that a full backward takes what its two halves take
    together if one of them is given: else it would be cheaper, or dearer, for no reason.

    Raises:
      ScheduleError: an unknown or repeated name, or no number.

    >>> describe_costs(parse_costs("F=1,I=1.2,W=0.8,hop=0.1"))
    'F=1 B=2 I=1.2 W=0.8 hop=0.1'
    """
    names = [field.name for field in dataclasses.fields(Costs)]
    given: dict[str, Cost] = {}
    for part in text.replace(",", " ").split():
        name, _, value = part.partition("=")
        if name not in names:
            hint = nearest(name, names)
            raise ScheduleError(f"costs: got {part!r}, but there is no cost {name!r}; {hint}")
        if name in given:
            raise ScheduleError(f"costs: {name} stands twice in {text!r}; keep one.")
        given[name] = _read(part, value, several=name not in _ONE_FOR_ALL)
    if "B" not in given and given.keys() & {"I", "W"}:
        given["B"] = _sum(given.get("I", Costs.I), given.get("W", Costs.W))
    return dataclasses.replace(Costs(), **given)


def _each(cost: Cost) -> list[float]:
    return [float(cost)] if isinstance(cost, Real) else [float(one) for one in cost]  # pyright: ignore


def _read(part: str, value: str, several: bool) -> Cost:
    """One number, or one for each stage."""
    try:
        numbers = [float(number) for number in value.split(":")]
    except ValueError:
        numbers = []
    if not numbers or (len(numbers) > 1 and not several):
        more = ", or F=1:1:1:3 with one for each stage" if several else ""
        raise ScheduleError(f"costs: got {part!r}; expected a number, as in hop=0.5{more}.")
    return numbers[0] if len(numbers) == 1 else tuple(numbers)


def _sum(a: Cost, b: Cost) -> Cost:
    """Of two costs, stage by stage if one of them is."""
    halves = [_each(a), _each(b)]
    length = max(map(len, halves))
    halves = [half * length if len(half) == 1 else half for half in halves]
    if len(halves[0]) != len(halves[1]):
        raise ScheduleError(
            f"costs: I has {len(halves[0])} stages and W has {len(halves[1])}; expected as many."
        )
    sums = tuple(x + y for x, y in zip(*halves, strict=True))
    return sums[0] if length == 1 else sums
