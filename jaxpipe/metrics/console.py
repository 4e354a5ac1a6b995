"""Metrics for the eye: a live line in a terminal, plain lines in a file.

Both kinds are sinks, and both show each step as it comes, print notes in between, and say what goes
on when nothing else does.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, Protocol, TextIO

import rich.console
from rich.console import RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.spinner import Spinner

_GIB = 2**30
_PATIENCE = 1.0  # seconds that something may last before a terminal shows it


def duration(seconds: float) -> str:
    """A time for people.

    >>> duration(7.4), duration(75), duration(7325)
    ('7 s', '1:15', '2:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


_FORMATS: Mapping[str, Callable[[float], str]] = {
    "loss": "loss {:.4f}".format,
    "held_out_loss": "held-out loss {:.4f}".format,
    "held_out_accuracy": "held-out accuracy {:.1%}".format,
    "learning_rate": "lr {:.2e}".format,
    "grad_norm": "grad norm {:.3f}".format,
    "loss_scale": "loss scale {:g}".format,
    "skipped": "skipped {:.0f}".format,
    "tokens_per_second": "{:,.0f} tokens/s".format,
    "samples_per_second": "{:,.0f} samples/s".format,
    "mfu": "MFU {:.1%}".format,
    "bubble": "bubble {:.1%}".format,
    "device_memory_bytes": lambda size: f"{size / _GIB:.1f} GiB/device",
    "process_memory_bytes": lambda size: f"process {size / _GIB:.1f} GiB",
    "seconds_left": lambda seconds: f"{duration(seconds)} left",
}
# What the line of a terminal says besides the bar, the loss and the time that is left.
_LIVE = ("tokens_per_second", "samples_per_second", "mfu", "bubble", "device_memory_bytes")
_LIVE += ("process_memory_bytes",)


class Console(Protocol):
    """A sink that people look at."""

    def note(self, text: str) -> None:
        """Prints text as it is, above the live line if there is one."""
        ...

    def advance(self, step: int, loss: float) -> None:
        """Says that a step is done."""
        ...

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Shows the metrics of a step."""
        ...

    def working(self, what: str | None) -> None:
        """Says what the process does from now on; None: what it always does."""
        ...

    def still(self, what: str, seconds: float) -> None:
        """Gives a sign of life: the process has done the same for so long. From another thread."""
        ...

    def close(self) -> None:
        """Ends the live line."""
        ...


def console_for(
    num_steps: int, stream: TextIO | None = None, variables: Mapping[str, str] = os.environ
) -> Console:
    """The console that suits the stream (by default the standard output).

    Terminals get a live line; files, pipes, CI and batch jobs get plain lines.

    Args:
      num_steps: steps of the whole run.
      stream: where to print.
      variables: of the environment: `CI` and `SLURM_JOB_ID` say that nobody looks on, and
        `TERM=dumb` that the terminal cannot draw.
    """
    out = sys.stdout if stream is None else stream
    plain = any(variables.get(name) for name in ("CI", "SLURM_JOB_ID"))
    if out.isatty() and not plain and variables.get("TERM") != "dumb":
        return LiveConsole(num_steps, rich.console.Console(file=out))
    return PlainConsole(num_steps, out)


class PlainConsole:
    """Lines, for logs and pipes: `step   10/300  loss 2.5000  lr 1.00e-03  12,345 tokens/s`."""

    def __init__(self, num_steps: int, stream: TextIO) -> None:
        """Prints to `stream`."""
        self._num_steps, self._stream = num_steps, stream

    def note(self, text: str) -> None:
        """Prints text."""
        print(text, file=self._stream, flush=True)

    def advance(self, step: int, loss: float) -> None:
        """Prints nothing: lines come with the metrics."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Prints a line."""
        digits = len(str(self._num_steps))
        self.note(f"step {step:>{digits}}/{self._num_steps}  {describe(scalars)}")

    def working(self, what: str | None) -> None:
        """Prints nothing, unless it lasts."""

    def still(self, what: str, seconds: float) -> None:
        """Prints what goes on."""
        self.note(f"still {what}, for {duration(seconds)}")

    def close(self) -> None:
        """Has nothing to end."""


class NoConsole:
    """Shows nothing: of several processes one prints."""

    def note(self, text: str) -> None:
        """Prints nothing."""

    def advance(self, step: int, loss: float) -> None:
        """Prints nothing."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Prints nothing."""

    def working(self, what: str | None) -> None:
        """Prints nothing."""

    def still(self, what: str, seconds: float) -> None:
        """Prints nothing."""

    def close(self) -> None:
        """Has nothing to end."""


class LiveConsole:
    """A progress bar that says step, loss, speed and the time that is left.

    Beneath it a spinner turns while anything but the usual goes on.
    """

    def __init__(self, num_steps: int, console: rich.console.Console) -> None:
        """Draws on `console`; the bar appears with the first step."""
        self._num_steps, self._console = num_steps, console
        self._task: TaskID | None = None
        self._speed, self._work, self._is_over = "", _Work(None, 0.0), False
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TextColumn("loss {task.fields[loss]:.4f} {task.fields[speed]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._spinner = Spinner("dots")
        self._live = Live(console=console, get_renderable=self._view, refresh_per_second=4)

    def note(self, text: str) -> None:
        """Prints text above the bar."""
        # Drawings are wider than terminals: rich must neither wrap, cut nor colour them.
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def advance(self, step: int, loss: float) -> None:
        """Moves the bar."""
        if self._task is None:
            # A resumed run starts here, or else the time left would count the steps before it.
            self._task = self._progress.add_task(
                "train", total=self._num_steps, completed=step, loss=loss, speed=""
            )
        self._live.start()
        self._progress.update(self._task, completed=step, loss=loss, speed=self._speed)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Shows the speed in the bar, and an evaluation above it."""
        if speed := describe({name: scalars[name] for name in _LIVE if name in scalars}):
            self._speed = speed
        if "held_out_loss" in scalars:
            self.note(f"step {step}: {describe(scalars)}")

    def working(self, what: str | None) -> None:
        """Turns a spinner if it lasts."""
        self._work = _Work(what, time.monotonic())
        if what is not None and not self._is_over:
            self._live.start()

    def still(self, what: str, seconds: float) -> None:
        """Prints nothing: the spinner turns."""

    def close(self) -> None:
        """Ends the bar."""
        self._work, self._is_over = _Work(None, 0.0), True
        self._live.stop()

    def _view(self) -> RenderableType:
        """What stands at the bottom of the terminal now; asked for by a thread of rich."""
        return rich.console.Group(*self._rows())

    def _rows(self) -> Iterator[RenderableType]:
        if self._task is not None:
            yield self._progress.get_renderable()
        what, began = self._work
        if what is not None and time.monotonic() - began > _PATIENCE:
            self._spinner.update(text=f"{what}, {duration(time.monotonic() - began)}")
            yield self._spinner


class _Work(NamedTuple):
    """What goes on, and since when; one value, since another thread reads it."""

    what: str | None
    began: float


def describe(scalars: Mapping[str, float]) -> str:
    """The metrics that people watch, in one line.

    >>> describe({"loss": 2.5, "learning_rate": 1e-3, "seconds": 4.0})
    'loss 2.5000  lr 1.00e-03'
    """
    return "  ".join(shown(scalars[name]) for name, shown in _FORMATS.items() if name in scalars)
