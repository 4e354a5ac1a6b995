"""A run on one page of HTML that needs nothing else: no network, no script."""

import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from jaxpipe.errors import ScheduleError
from jaxpipe.schedules import pictures
from jaxpipe.summary.plot import Line, Plot, svg
from jaxpipe.summary.record import RunRecord, read_run
from jaxpipe.summary.step import StepRecord
from jaxpipe.summary.style import SECTIONS, STYLE

PAGE = "summary.html"
TRACE = "trace.json"  # of the step, for https://ui.perfetto.dev
_MOST_BARS = 6000  # that a picture of a step may have on a page
_GIB = 2**30


def write_summary(folder: Path) -> Path:
    """Makes the page of a run anew, from the files in its folder, and the trace of its step.

    Returns:
      Where the page is.

    Raises:
      ConfigError: it is no run's folder.
      OSError: the page cannot be written.
    """
    path, run = folder / PAGE, read_run(folder)
    if run.step is not None:
        (folder / TRACE).write_text(pictures.trace(run.step.charts()), encoding="utf-8")
    path.write_text(page(run), encoding="utf-8")
    return path


def page(run: RunRecord) -> str:
    """The page, as text."""
    parts = [
        *_header(run),
        *_tiles(run),
        *_plots(run),
        *_step(run.step),
        *_time(run.seconds()),
        *_notes(run),
        *_about(run),
    ]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(run.name)}: a run of jaxpipe</title>\n<style>\n{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _header(run: RunRecord) -> Iterator[str]:
    ending, problem = run.ended.get("ending"), run.ended.get("problem")
    kinds = {"finished": "finished", "interrupted": "stopped", "interrupted at once": "stopped"}
    words, kind = (ending or "has not ended"), kinds.get(str(ending), "failed")
    steps = max((step for step, _ in run.series("loss")), default=0)
    wanted = run.config.get("trainer", {}).get("steps")
    starts = len(run.events("started"))
    began = run.events("started")[:1]
    said = [f"step {steps:,}" + (f" of {wanted:,}" if isinstance(wanted, int) else "")]
    said += [f"began {_clock(event['time'])}" for event in began]
    said += [f"{starts} starts"] if starts > 1 else []
    state = f'<span class="state {kind if ending else "stopped"}">{escape(words)}</span>'
    yield f"<header><h1>{escape(run.name)}</h1>{state}"
    yield f"<p>{escape(', '.join(said))}</p>"
    if problem:
        yield f"<p><strong>{escape(str(problem))}</strong></p>"
    yield "</header>"


def _tiles(run: RunRecord) -> Iterator[str]:
    """The numbers that people ask for first."""
    tiles: list[tuple[str, str]] = []
    for name, words, form in (
        ("loss", "loss", "{:.4f}"),
        ("held_out_loss", "held-out loss", "{:.4f}"),
        ("held_out_accuracy", "held-out accuracy", "{:.2%}"),
        ("bigram_loss", "a byte bigram's loss", "{:.4f}"),
    ):
        if known := [value for _, value in run.series(name) if value is not None]:
            tiles.append((form.format(known[-1]), words))
    for name, words, form in (
        ("tokens_per_second", "tokens/s, median", "{:,.0f}"),
        ("samples_per_second", "samples/s, median", "{:,.0f}"),
        ("mfu", "MFU, median", "{:.1%}"),
    ):
        if known := [value for _, value in run.series(name) if value is not None]:
            tiles.append((form.format(statistics.median(known)), words))
    if run.step is not None:
        if run.step.fastest is not None:
            tiles.append((f"{run.step.fastest.bubble_fraction:.1%}", "bubble, measured"))
        tiles.append((f"{run.step.planned.bubble_fraction:.1%}", "bubble, simulated by FLOPs"))
    for name, words in (
        ("device_memory_bytes", "of memory on the fullest device"),
        ("process_memory_bytes", "of memory, the process"),
    ):
        if known := [value for _, value in run.series(name) if value is not None]:
            tiles.append((f"{max(known) / _GIB:.1f} GiB", words))
    if seconds := run.seconds():
        tiles.append((_duration(sum(seconds.values())), "in all"))
    yield '<div class="tiles">'
    for value, words in tiles:
        yield f'<div class="tile"><b>{escape(value)}</b><span>{escape(words)}</span></div>'
    yield "</div>"


def _plots(run: RunRecord) -> Iterator[str]:
    marks = _marks(run)
    unit = "samples" if run.series("samples_per_second") else "tokens"
    losses = [Line("train", run.series("loss")), Line("held out", run.series("held_out_loss"))]
    plots = [
        Plot("Loss", losses, marks),
        Plot("Learning rate", [Line("learning rate", run.series("learning_rate"))], marks, True),
        Plot(
            f"Throughput, {unit} per second",
            [Line("throughput", run.series(f"{unit}_per_second"))], marks, True,
        ),
        Plot(
            "Norm of the gradients, before clipping",
            [Line("norm", run.series("grad_norm"))], marks, True,
        ),
        Plot("MFU", [Line("MFU", run.series("mfu"))], marks, True),
        Plot("Loss scale", [Line("loss scale", run.series("loss_scale"))], marks, True),
    ]  # fmt: skip
    drawn = [picture for plot in plots if (picture := svg(plot))]
    yield '<div class="pair">'
    for picture in drawn:
        yield f"<section>\n{picture}</section>"
    yield "</div>"


def _marks(run: RunRecord) -> list[tuple[float, str]]:
    """Where something has happened that a line may show."""
    marks: list[tuple[float, str]] = []
    marks += [(e["step"], f"resumed from step {e['step']}") for e in run.events("resumed")]
    marks += [
        (e["step"], f"rolled back from step {e['step']} to step {e['to']}")
        for e in run.events("rolled back")
    ]
    skipped = run.series("skipped")
    return marks + [(step, f"step {step} was skipped") for step, _ in skipped[:100]]


def _step(step: StepRecord | None) -> Iterator[str]:
    """The pipeline: measured beside simulated, or simulated alone."""
    if step is None:
        return
    yield "<section><h2>One step of the pipeline</h2>"
    charts = step.charts()
    if sum(len(chart.bars) for chart in charts) > _MOST_BARS:
        yield '<p class="note">It has too many actions to be drawn here.</p>'
    else:
        try:
            picture = pictures.svg(charts)
            yield f'<div class="picture" role="img" aria-label="The pipeline">{picture}</div>'
        except ScheduleError as error:
            yield f'<p class="note">{escape(str(error))}</p>'
    planned = f"{step.planned.bubble_fraction:.1%}"
    if step.fastest is None:
        yield (
            '<p class="note">Simulated, at what the stages cost by their FLOPs: the bubble is'
            f" {planned}. No step was measured: the run did not finish, metrics.timeline is off,"
            " several processes share a pipeline, or the profiler of these devices does not show"
            " single operations.</p>"
        )
    else:
        yield (
            f'<p class="note">Measured after the last step: {1000 * step.fastest.makespan:.4g} ms,'
            f" of which ranks are idle for {step.fastest.bubble_fraction:.1%}. Above it the step"
            " simulated with the times that its actions took. By FLOPs alone, before the run, the"
            f" bubble was to be {planned}. Point at a bar for its stage and its times.</p>"
        )
    for words in step.slow_ranks():
        yield f'<p class="note"><strong>Slow:</strong> {escape(words)}.</p>'
    yield "</section>"


def _time(seconds: Mapping[str, float]) -> Iterator[str]:
    """Where the time went."""
    total = sum(seconds.values())
    if not total:
        return
    known = [name for name in SECTIONS if seconds.get(name)]
    names = known + sorted(set(seconds) - set(SECTIONS))
    looks = {name: SECTIONS.get(name, (name, "#a8b0bb")) for name in names}
    goodput = seconds.get("step", 0.0) / total
    words = ", ".join(f"{looks[name][0]} {seconds[name] / total:.1%}" for name in names)
    yield f"<section><h2>Where the time went: {goodput:.1%} into training steps</h2>"
    yield f'<div class="share" role="img" aria-label="{escape(words)}">'
    for name in names:
        width, (title, colour) = 100 * seconds[name] / total, looks[name]
        yield (
            f'<div title="{escape(title)}: {_duration(seconds[name])}"'
            f' style="width:{width:.3f}%;background:{colour}"></div>'
        )
    yield "</div><table>"
    for name in names:
        title, colour = looks[name]
        yield (
            f'<tr><td><span class="key" style="background:{colour}"></span>{escape(title)}</td>'
            f'<td class="number">{_duration(seconds[name])}</td>'
            f'<td class="number">{seconds[name] / total:.1%}</td></tr>'
        )
    yield "</table></section>"


def _notes(run: RunRecord) -> Iterator[str]:
    """What happened that is not as it should be, or that a reader should know."""
    said = list(_events(run))
    skipped = len(run.series("skipped"))
    if skipped:
        what = "loss or gradients were not finite, or leapt up"
        last = f"{skipped} step{'s' * (skipped > 1)} skipped: {what}"
        said.append((run.lines[-1].get("time", 0.0), last))
    if not said:
        return
    yield "<section><h2>Notes</h2><ul>"
    for at, words in said:
        yield f"<li><time>{_clock(at)}</time>{escape(words)}</li>"
    yield "</ul></section>"


def _events(run: RunRecord) -> Iterator[tuple[float, str]]:
    for event in run.history:
        kind, at = event.get("event"), event.get("time", 0.0)
        problem = event.get("problem")
        if kind == "resumed":
            yield at, f"resumed from step {event.get('step')}"
        elif kind == "rolled back":
            yield at, f"rolled back to step {event.get('to')}: {problem}"
        elif kind in ("lost", "not saved", "spike"):
            yield at, f"{kind}: {problem}"
        elif kind == "ended" and event.get("ending") != "finished":
            yield at, f"ended: {event.get('ending')}" + (f": {problem}" if problem else "")
        elif kind == "slow":
            yield at, str(event.get("rank"))
        elif kind == "started":
            if event.get("hang"):
                yield at, f"the start before did not go on: {event['hang']}"
            for change in event.get("changes") or []:
                yield at, f"changed: {change}"


def _about(run: RunRecord) -> Iterator[str]:
    """What was run, and on what."""
    started, environment = run.started, run.environment
    about: Mapping[str, Any] = started.get("about") or {}
    git = environment.get("git") or {}
    changed = " with changes" if git.get("changed") else ""
    devices = [f"{d['count']} x {d['kind']}" for d in environment.get("devices", ())]
    rows = {
        "model": _pairs(about.get("model") or run.config.get("model", {})),
        "data": str(started.get("data", "")).removeprefix("data: "),
        "mesh": _pairs(about.get("mesh") or {}),
        "optimizer": _pairs(run.config.get("optimizer", {})),
        "devices": ", ".join(devices),
        "processes": str(environment.get("processes", "")),
        "commit": f"{git['commit'][:12]}{changed}" if git.get("commit") else "",
        "versions": _pairs(_versions(environment.get("versions", {}))),
        "flags": (environment.get("variables") or {}).get("XLA_FLAGS", ""),
    }
    yield "<section><h2>What was run</h2><table>"
    for name, value in rows.items():
        if value:
            yield f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>"
    yield "</table></section>"
    for name in ("partition", "schedule"):
        if text := started.get(name):
            yield f"<section><h2>{name.capitalize()}</h2><pre>{escape(text)}</pre></section>"
    yield (
        "<footer>Made by jaxpipe from the files beside this page; <code>jaxpipe summary</code>"
        " makes it anew.</footer>"
    )


def _versions(versions: Mapping[str, str]) -> dict[str, str]:
    return {name.removeprefix("version of "): value for name, value in versions.items()}


def _pairs(values: Mapping[str, Any]) -> str:
    """`{"layers": 8, "tied": None}` as `layers 8`."""
    shown = {name: value for name, value in values.items() if value is not None}
    return ", ".join(f"{name.replace('_', ' ')} {_plain(value)}" for name, value in shown.items())


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _duration(seconds: float) -> str:
    """A time for people.

    >>> _duration(0.25), _duration(7.4), _duration(75), _duration(7325)
    ('0.2 s', '7.4 s', '1:15', '2:02:05')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(math.floor(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
