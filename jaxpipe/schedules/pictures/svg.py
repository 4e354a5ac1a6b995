"""Charts as SVG: a row of bars for each rank, and beneath it what the rank holds."""

import itertools
import math
from collections.abc import Iterator, Sequence
from html import escape

from jaxpipe.schedules.pictures.bars import Bar, held_steps
from jaxpipe.schedules.pictures.chart import Chart, same_unit
from jaxpipe.schedules.table import Op

OPS = {
    Op.F: "forward",
    Op.B: "backward",
    Op.I: "input gradient",
    Op.W: "weight gradient",
}
"""The ops in words, for legends and tooltips."""

# Searched so that no two ops come near each other, whatever their chunks, for eyes that see all
# colours and for each of the three kinds of colour-blindness: 14 or more apart in CIELAB.
_COLOURS = {Op.F: "#08349a", Op.B: "#b82a00", Op.I: "#d9b51c", Op.W: "#0a8f80"}
_MOST_WHITE = 0.5  # in the colour of the last of several chunks

# All in pixels.
_MARGIN, _BAR, _HELD, _GAP = 16, 22, 12, 7  # around all; heights of a bar, a held plot, a gap
_LINE, _AXIS, _BETWEEN = 18, 36, 22  # a line of words, the axis beneath the rows, between charts
_HELD_WORDS = 60  # right of a row
_WIDEST_BAR, _MOST_WIDTH, _GOOD_WIDTH = 30.0, 4000.0, 1200.0  # of a narrow bar, of all bars
_LARGEST, _SMALLEST = 11.0, 7.0  # letters in bars
_DIGIT, _ROOM = 0.64, 4.0  # the width of a digit per size of letters; what a number leaves free
_WORDS = 6.4  # a letter of the words above a chart

# All of it within `.schedule`: on a page, a style holds for every picture there.
_STYLE = (
    ".schedule text{font-family:Helvetica,Arial,'DejaVu Sans',sans-serif;font-size:12px;fill:#222}"
    ".schedule .title{font-size:15px;font-weight:bold}.schedule .small{font-size:11px;fill:#555}"
    ".schedule .idle{fill:#eeeeee}.schedule .grid{stroke:#bbb;stroke-width:1}"
    ".schedule .held{fill:#999;fill-opacity:.55}.schedule .bar rect{stroke:#fff;stroke-width:1}"
    ".schedule .bar text{text-anchor:middle}"
    ".schedule .middle{text-anchor:middle}.schedule .end{text-anchor:end}"
)


def svg(charts: Sequence[Chart]) -> str:
    """One picture of all charts, on one scale.

    Every bar has its microbatch as a number where that fits, and a tooltip.

    Raises:
      ScheduleError: there is no chart, or their units differ.
    """
    same_unit(charts)
    left = 2 * _MARGIN + _WORDS * len(f"rank {max(chart.num_ranks for chart in charts) - 1}")
    scale = _scale(charts)
    parts, y = [], float(_MARGIN)
    for chart in charts:
        drawn, height = _chart(chart, left, scale)
        parts += [f'<g transform="translate(0,{_n(y)})">', *drawn, "</g>"]
        y += height + _BETWEEN
    legend, right = _legend(charts, left, y)
    rows = left + scale * max(chart.end for chart in charts) + _HELD_WORDS
    lines = _MARGIN + _WORDS * max(len(line) for chart in charts for line in _headlines(chart))
    width, height = _n(max(right, rows, lines) + _MARGIN), _n(y + 2 * _LINE + _MARGIN)
    size = f'width="{width}" height="{height}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="schedule" {size}'
            f' viewBox="0 0 {width} {height}">',
            f"<style>{_STYLE}{''.join(_fills(charts))}</style>",
            f'<rect {size} fill="#fff"/>',
            *parts,
            *legend,
            "</svg>\n",
        ]
    )


def _n(number: float) -> str:
    """A number with two digits behind the point at most."""
    return f"{round(number, 2):.10g}"


def _scale(charts: Sequence[Chart]) -> float:
    """Pixels for a unit of time: bars take a number each, unless there are very many."""
    narrow, end = _narrow(charts), max(chart.end for chart in charts)
    if not narrow:
        return _WIDEST_BAR
    narrowest = _ROOM + max(map(_digits, charts)) * _DIGIT * (_SMALLEST + 1)
    readable = min(narrowest / narrow, _MOST_WIDTH / end)
    return min(_WIDEST_BAR / narrow, max(_GOOD_WIDTH / end, readable))


def _narrow(charts: Sequence[Chart]) -> float:
    """What one bar in ten falls short of; 0 if there are none. Bars without width do not count."""
    widths = sorted(bar.end - bar.start for chart in charts for bar in chart.bars)
    widths = [width for width in widths if width > 0]
    return widths[len(widths) // 10] if widths else 0.0


def _digits(chart: Chart) -> int:
    """Of the highest microbatch."""
    return len(str(max((bar.action.microbatch for bar in chart.bars), default=0)))


# --- One chart ------------------------------------------------------------------------------------


def _headlines(chart: Chart) -> tuple[str, str, str]:
    """The name; the counts; what a run shows."""
    name, _, counts = chart.title.partition(": ")
    return name, counts, chart.note


def _chart(chart: Chart, left: float, scale: float) -> tuple[list[str], float]:
    """A chart with its top at 0, and its height."""
    parts = []
    for number, line in enumerate(_headlines(chart)):
        kind = ' class="title"' if number == 0 else ""
        parts.append(
            f'<text x="{_MARGIN}" y="{(number + 1) * _LINE - 5}"{kind}>{escape(line)}</text>'
        )
    y = 3 * _LINE + _GAP
    holds = [held_steps(chart.row(rank)) for rank in range(chart.num_ranks)]
    most = max((count for steps in holds for _, count in steps), default=0)
    for rank, steps in enumerate(holds):
        parts.append(f'<g transform="translate({_n(left)},{_n(y)})">')
        parts += _row(chart, rank, scale)
        if most:
            parts += _held(steps, most, chart.end * scale, scale, rank)
        parts.append("</g>")
        y += _BAR + (_HELD + 2 if most else 0) + _GAP
    parts += _axis(chart, left, y, scale)
    return parts, y + _AXIS


def _row(chart: Chart, rank: int, scale: float) -> Iterator[str]:
    """The bars of a rank, on grey where it is idle."""
    yield f'<text class="end" x="-8" y="{_BAR / 2 + 4:g}">rank {rank}</text>'
    yield f'<rect class="idle" width="{_n(chart.end * scale)}" height="{_BAR}"/>'
    size = _letters(chart, scale)
    for bar in chart.row(rank):
        yield _bar(chart, bar, scale, size)


def _letters(chart: Chart, scale: float) -> float:
    """The size of numbers that suits most bars; one size for all, since many would be unquiet."""
    room = _narrow([chart]) * scale - _ROOM
    return max(_SMALLEST, min(_LARGEST, room / (_digits(chart) * _DIGIT)))


def _bar(chart: Chart, bar: Bar, scale: float, size: float) -> str:
    """One bar with its tooltip, and its microbatch where that fits."""
    stage, op, microbatch = bar.action
    width, kind = (bar.end - bar.start) * scale, f"{op}{chart.chunk(stage)}"
    words = f"{OPS[op]} of microbatch {microbatch}, stage {stage}, rank {bar.rank}"
    when = f"{chart.unit} {bar.start:g} to {bar.end:g}"
    number = ""
    if len(str(microbatch)) * _DIGIT * size <= width - 1.5:
        number = (
            f'<text x="{_n(bar.start * scale + width / 2)}" y="{_n(_BAR / 2 + 0.36 * size)}"'
            f' style="font-size:{_n(size)}px">{microbatch}</text>'
        )
    return (
        f'<g class="bar {kind}"><title>{bar.action}: {words}; {when}</title>'
        f'<rect x="{_n(bar.start * scale)}" width="{_n(width)}" height="{_BAR}"/>{number}</g>'
    )


def _held(
    steps: Sequence[tuple[float, int]], most: int, width: float, scale: float, rank: int
) -> Iterator[str]:
    """What a rank holds, step by step, and the most of it at the end of the line."""
    base = _BAR + 2 + _HELD
    peak = max((count for _, count in steps), default=0)
    path = [f"M0 {base}"]
    for at, count in steps:
        path.append(f"H{_n(at * scale)}V{_n(base - _HELD * count / most)}")
    yield (
        f"<g><title>rank {rank} holds at most {peak}</title>"
        f'<path class="held" d="{"".join(path)}H{_n(width)}V{base}Z"/></g>'
    )
    yield f'<text class="small" x="{_n(width + 6)}" y="{base - 1}">held {peak}</text>'


def _axis(chart: Chart, left: float, y: float, scale: float) -> Iterator[str]:
    """A line with round numbers, and what they count."""
    end = chart.end * scale
    yield f'<path class="grid" d="M{_n(left)} {_n(y)}h{_n(end)}"/>'
    step = _round_step(48 / scale)
    for number in range(int(chart.end / step + 1e-9) + 1):
        x = left + number * step * scale
        yield f'<path class="grid" d="M{_n(x)} {_n(y)}v4"/>'
        yield f'<text class="small middle" x="{_n(x)}" y="{_n(y + 16)}">{number * step:g}</text>'
    yield f'<text class="small" x="{_n(left)}" y="{_n(y + 31)}">{escape(chart.unit)}</text>'


def _round_step(least: float) -> float:
    """1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= least * (1 - 1e-9))


# --- Colours --------------------------------------------------------------------------------------


def _kinds(charts: Sequence[Chart]) -> list[tuple[Op, int]]:
    """The ops that occur, each with the chunks that occur."""
    kinds = {
        (bar.action.op, chart.chunk(bar.action.stage)) for chart in charts for bar in chart.bars
    }
    return sorted(kinds, key=lambda kind: (list(Op).index(kind[0]), kind[1]))


def _fills(charts: Sequence[Chart]) -> Iterator[str]:
    """A rule of style for each op and chunk: later chunks are paler."""
    kinds = _kinds(charts)
    last = max((chunk for _, chunk in kinds), default=0)
    for op, chunk in kinds:
        pale = _MOST_WHITE * chunk / max(1, last)
        rgb = [int(_COLOURS[op][i : i + 2], 16) for i in (1, 3, 5)]
        rgb = [round(value + (255 - value) * pale) for value in rgb]
        fill = "#" + "".join(f"{value:02x}" for value in rgb)
        light = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] > 140
        ink = "#111" if light else "#fff"
        kind = f".schedule .{op}{chunk}"
        yield f"{kind} rect{{fill:{fill}}}{kind} text{{fill:{ink}}}"


def _legend(charts: Sequence[Chart], left: float, y: float) -> tuple[list[str], float]:
    """What the colours mean; and how far to the right it goes."""
    kinds = _kinds(charts)
    chunks = max((chunk for _, chunk in kinds), default=0) + 1
    parts, x = [], left
    for op, several in itertools.groupby(kinds, key=lambda kind: kind[0]):
        for _, chunk in several:
            box = f'<rect x="{_n(x)}" y="{_n(y)}" width="14" height="14"/>'
            parts.append(f'<g class="bar {op}{chunk}">{box}</g>')
            x += 16
        words = f"{op}: {OPS[op]}"
        parts.append(f'<text x="{_n(x + 4)}" y="{_n(y + 11)}">{words}</text>')
        x += 24 + len(words) * _WORDS
    words = (
        "Numbers are microbatches, grey is idle; beneath a row: microbatches held for a backward."
    )
    if chunks > 1:
        words += " Paler: a rank's later stages."
    parts.append(f'<text class="small" x="{_n(left)}" y="{_n(y + _LINE + 11)}">{words}</text>')
    return parts, max(x, left + 0.93 * _WORDS * len(words))
