"""Lines over steps as SVG, for a page that gives the colours."""

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

Point = tuple[float, float | None]  # None: no number, which parts the line

_WIDTH, _HEIGHT = 560.0, 250.0  # of the view; the page scales it
_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 14.0, 34.0, 34.0  # around what is plotted
_MOST_POINTS = 600  # of a line; of more, only the lowest and highest of each stretch are drawn
_MOST_DOTS = 60  # with a tooltip each
_STEPS = (1, 2, 2.5, 5, 10)


class Line(NamedTuple):
    """A line of a plot.

    Attributes:
      name: for the legend, and its class in the page's style.
      points: (step, value) by step.
    """

    name: str
    points: Sequence[Point]


class Plot(NamedTuple):
    """What is plotted.

    Attributes:
      title: what the values are, with their unit.
      lines: at least one.
      marks: (step, words): vertical lines where something has happened.
      from_zero: whether the axis begins at 0.
    """

    title: str
    lines: Sequence[Line]
    marks: Sequence[tuple[float, str]] = ()
    from_zero: bool = False


def nice_ticks(low: float, high: float, most: int) -> list[float]:
    """At most so many round numbers from `low` to `high`, evenly spaced.

    >>> nice_ticks(0.3, 2.2, 5)
    [0.5, 1.0, 1.5, 2.0]
    """
    span = max(high - low, abs(high) * 1e-9, 1e-30)
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(m * power for m in (*_STEPS, 20) if span / (m * power) <= most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


def thinned(points: Sequence[Point], most: int = _MOST_POINTS) -> list[Point]:
    """As many points as can be seen: of each stretch its lowest and highest, and what is none.

    >>> thinned([(1, 5.0), (2, 1.0), (3, 9.0), (4, 4.0)], most=2)
    [(2, 1.0), (3, 9.0)]
    """
    if len(points) <= most:
        return list(points)
    size, found = math.ceil(2 * len(points) / most), list[Point]()
    for begin in range(0, len(points), size):
        stretch = points[begin : begin + size]
        known = sorted((y, i) for i, (_, y) in enumerate(stretch) if y is not None)
        kept = {i for i, (_, y) in enumerate(stretch) if y is None}
        kept |= {known[0][1], known[-1][1]} if known else set()
        found += [stretch[i] for i in sorted(kept)]
    return found


def svg(plot: Plot) -> str:
    """The plot; empty lines are left out.

    Its colours come from the page: `.line-0` and so on for lines, `.axis`, `.mark`.
    """
    lines = [line for line in plot.lines if any(y is not None for _, y in line.points)]
    if not lines:
        return ""
    return "\n".join(_Drawing(plot, lines).parts()) + "\n"


class _Drawing:
    """A plot with its scales."""

    def __init__(self, plot: Plot, lines: Sequence[Line]) -> None:
        self._plot, self._lines = plot, lines
        steps = [x for line in lines for x, _ in line.points]
        values = [y for line in lines for _, y in line.points if y is not None]
        self._first, self._last = min(steps), max(steps)
        low, high = min(values), max(values)
        low = 0.0 if plot.from_zero else low
        room = 0.04 * (high - low) or abs(high) * 0.5 or 1.0
        self._low, self._high = low if plot.from_zero else low - room, high + room

    def parts(self) -> Iterator[str]:
        """The elements, in order."""
        words = "; ".join(self._described(line) for line in self._lines)
        yield (
            f'<svg class="plot" viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img"'
            f' aria-label="{escape(self._plot.title)}">'
        )
        yield f"<title>{escape(self._plot.title)}</title><desc>{escape(words)}</desc>"
        yield f'<text class="name" x="0" y="14">{escape(self._plot.title)}</text>'
        yield from self._axes()
        yield from self._marks()
        for number, line in enumerate(self._lines):
            yield from self._line(number, line)
        yield from self._legend()
        yield "</svg>"

    def _described(self, line: Line) -> str:
        known = [(x, y) for x, y in line.points if y is not None]
        (first, begin), (last, end) = known[0], known[-1]
        return f"{line.name}: {begin:.4g} at step {first:g}, {end:.4g} at step {last:g}"

    def _x(self, step: float) -> float:
        span = self._last - self._first
        at = (step - self._first) / span if span else 0.5
        return round(_LEFT + at * (_WIDTH - _LEFT - _RIGHT), 1)

    def _y(self, value: float) -> float:
        at = (value - self._low) / (self._high - self._low)
        return round(_HEIGHT - _BOTTOM - at * (_HEIGHT - _TOP - _BOTTOM), 1)

    def _axes(self) -> Iterator[str]:
        right, base = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
        for value in nice_ticks(self._low, self._high, 5):
            y = self._y(value)
            yield f'<path class="grid" d="M{_LEFT:g} {y:g}H{right:g}"/>'
            yield f'<text class="end" x="{_LEFT - 8:g}" y="{y + 4:g}">{number(value)}</text>'
        yield f'<path class="axis" d="M{_LEFT:g} {base:g}H{right:g}"/>'
        for step in nice_ticks(self._first, self._last, 6):
            if step == int(step):
                x = self._x(step)
                yield f'<path class="axis" d="M{x:g} {base:g}v4"/>'
                yield f'<text class="middle" x="{x:g}" y="{base + 17:g}">{number(step)}</text>'
        yield f'<text class="end" x="{right:g}" y="{_HEIGHT - 3:g}">step</text>'

    def _marks(self) -> Iterator[str]:
        for step, words in self._plot.marks:
            if self._first <= step <= self._last:
                x, base = self._x(step), _HEIGHT - _BOTTOM
                line = f'<path class="mark" d="M{x:g} {_TOP:g}V{base:g}"/>'
                yield f"<g><title>{escape(words)}</title>{line}</g>"

    def _line(self, number_of: int, line: Line) -> Iterator[str]:
        points, path, pen = thinned(line.points), [], "M"
        for x, y in points:
            if y is None:
                pen = "M"
                continue
            path.append(f"{pen}{self._x(x):g} {self._y(y):g}")
            pen = "L"
        yield f'<path class="line line-{number_of}" d="{"".join(path)}"/>'
        if len(points) <= _MOST_DOTS:
            for x, y in points:
                if y is not None:
                    words = f"{line.name}, step {x:g}: {y:.4g}"
                    yield (
                        f'<circle class="dot line-{number_of}" cx="{self._x(x):g}"'
                        f' cy="{self._y(y):g}" r="2.5"><title>{escape(words)}</title></circle>'
                    )

    def _legend(self) -> Iterator[str]:
        """The lines' names, if there are several, at the right above the plot."""
        if len(self._lines) < 2:
            return
        right = _WIDTH - _RIGHT
        for number_of in reversed(range(len(self._lines))):
            name = self._lines[number_of].name
            right -= 6.4 * len(name)
            yield f'<text x="{right:g}" y="14">{escape(name)}</text>'
            right -= 24
            yield f'<path class="line line-{number_of}" d="M{right:g} 10h18"/>'
            right -= 14


def number(value: float) -> str:
    """A number for an axis.

    >>> [number(x) for x in (0.0, 0.0025, 1e-5, 2.5, 12000.0, 3.5e6)]
    ['0', '0.0025', '1e-05', '2.5', '12k', '3.5M']
    """
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):g}{letter}"
    return f"{value:g}"
