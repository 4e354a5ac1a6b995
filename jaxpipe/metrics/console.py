"""Metrics for the eye: a live line in a terminal, plain lines in a file.

Both kinds are sinks, and both show each step as it comes and print notes in between.
"""

import sys
from collections.abc import Mapping
from typing import Protocol, TextIO

import rich.console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

_FORMATS = {
    "loss": "loss {:.4f}",
    "held_out_loss": "held-out loss {:.4f}",
    "held_out_accuracy": "held-out accuracy {:.1%}",
    "learning_rate": "lr {:.2e}",
    "grad_norm": "grad norm {:.3f}",
    "loss_scale": "loss scale {:g}",
    "skipped": "skipped {:.0f}",
    "tokens_per_second": "{:,.0f} tokens/s",
    "samples_per_second": "{:,.0f} samples/s",
}


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

    def close(self) -> None:
        """Ends the live line."""
        ...


def console_for(num_steps: int, stream: TextIO | None = None) -> Console:
    """The console that suits the stream (by default the standard output).

    Args:
      num_steps: steps of the whole run.
      stream: where to print.
    """
    out = sys.stdout if stream is None else stream
    if out.isatty():
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

    def close(self) -> None:
        """Has nothing to end."""


class LiveConsole:
    """A progress bar that says step, loss, speed and the time that is left."""

    def __init__(self, num_steps: int, console: rich.console.Console) -> None:
        """Draws on `console`; the bar appears with the first step."""
        self._num_steps, self._console = num_steps, console
        self._task: TaskID | None = None
        self._speed = ""
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TextColumn("loss {task.fields[loss]:.4f} {task.fields[speed]}"),
            TimeRemainingColumn(),
            console=console,
        )

    def note(self, text: str) -> None:
        """Prints text above the bar."""
        # Drawings are wider than terminals: rich must neither wrap, cut nor colour them.
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def advance(self, step: int, loss: float) -> None:
        """Moves the bar."""
        if self._task is None:
            # A resumed run starts here, or else the time left would count the steps before it.
            self._progress.start()
            self._task = self._progress.add_task(
                "train", total=self._num_steps, completed=step, loss=loss, speed=""
            )
        self._progress.update(self._task, completed=step, loss=loss, speed=self._speed)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Shows the speed in the bar, and an evaluation above it."""
        speed = {name: x for name, x in scalars.items() if name.endswith("s_per_second")}
        if speed:
            self._speed = describe(speed)
        if "held_out_loss" in scalars:
            self.note(f"step {step}: {describe(scalars)}")

    def close(self) -> None:
        """Ends the bar."""
        self._progress.stop()


def describe(scalars: Mapping[str, float]) -> str:
    """The metrics that people watch, in one line.

    >>> describe({"loss": 2.5, "learning_rate": 1e-3, "seconds": 4.0})
    'loss 2.5000  lr 1.00e-03'
    """
    return "  ".join(
        shown.format(scalars[name]) for name, shown in _FORMATS.items() if name in scalars
    )
