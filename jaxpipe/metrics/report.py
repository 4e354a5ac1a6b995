"""What a training loop says about its steps, without making the devices wait."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

from jaxpipe.errors import Diverged, first_few
from jaxpipe.metrics.compilation import Compilation
from jaxpipe.metrics.console import Console
from jaxpipe.metrics.leaps import Leaps
from jaxpipe.metrics.memory import Memory
from jaxpipe.metrics.sink import Sinks
from jaxpipe.metrics.throughput import Throughput
from jaxpipe.metrics.work import StepWork

_WORTH_SAYING = 0.1  # seconds of compilation


class Report:
    """Reads the metrics of steps, one step late, and hands them on.

    Reading a number waits for the device that computes it. So each call reads the numbers of the
    step before, while the devices work on the step that was just handed to them. Where one more
    skipped step could end the run, it is read before another one begins.
    """

    def __init__(
        self,
        console: Console,
        sinks: Sinks,
        *,
        work: StepWork,
        log_interval: int,
        learning_rates: Sequence[float],
        most_skipped: int = 0,
        spike: float | None = None,
        norm_spike: float | None = None,
        spiked: Callable[[int, str], None] | None = None,
        skips_spikes: bool = False,
        recent: Mapping[str, Sequence[float | None]] | None = None,
        compiled: Callable[[], Compilation] = Compilation.none,
        memory: Callable[[], Memory] | None = None,
    ) -> None:
        """Starts the clock.

        Args:
          console: shows every step.
          sinks: get the metrics of the steps that `log_interval` divides, of the first step, and
            of one whose loss is not finite.
          work: of a step, for the speed.
          log_interval: steps between two lines.
          learning_rates: of each step of the run, the first one's first.
          most_skipped: how many steps in a row may have been skipped.
          spike: a loss of more than so many times the median of the last ones has diverged.
          norm_spike: likewise for the norm of the gradients.
          spiked: told of the step and what leaps there, once for each leap; None: it has diverged.
          skips_spikes: `limits` has what a step may not be above; `spiked` is told of each that is.
          recent: what `recent()` said where the run goes on from.
          compiled: asked after the first step what it took to compile.
          memory: asked for the most memory in use so far.
        """
        self._console, self._sinks = console, sinks
        self._work, self._log_interval = work, log_interval
        self._compiled, self._memory = compiled, memory
        self._learning_rates, self._most_skipped = learning_rates, most_skipped
        self._skipped = 0  # steps in a row, up to the last one that was read
        last = recent or {}
        self._spiked, self._skips_spikes = spiked, skips_spikes
        self._leaps = {
            "loss": Leaps("loss", spike, last.get("loss", ())),
            "grad_norm": Leaps("grad norm", norm_spike, last.get("grad_norm", ())),
        }
        self._pending: tuple[int, Mapping[str, Any], Mapping[str, float]] | None = None
        self._start = time.perf_counter()
        self._throughput: Throughput | None = None
        self._first = 0, 0.0  # the first step, and when it was done

    def limits(self, step: int) -> Mapping[str, float] | None:
        """Above what the next step is to change nothing, by metric; None: there are no limits.

        They depend on metrics of steps up to the second before it, whatever has been read.
        """
        if not self._skips_spikes:
            return None
        looking = {name: leaps for name, leaps in self._leaps.items() if leaps.looks}
        # As the devices compare them.
        return {name: float(np.float32(leaps.limit(step))) for name, leaps in looking.items()}

    def step(
        self, step: int, metrics: Mapping[str, Any], limits: Mapping[str, float] | None = None
    ) -> None:
        """Takes a step's metrics, scalars on a device as engines give them; reads the last ones.

        Args:
          step: the step.
          metrics: of it.
          limits: what it was not to be above, if there are limits.

        Raises:
          Diverged: too many steps up to the one before, or to this one, were skipped.
        """
        self.flush()
        self._pending = (step, metrics, limits or {})
        if self._throughput is None:
            self.flush()  # the first step compiles: wait for it, and leave it out of the speed
            compiled = self._compiled()
            more = f": {compiled}" if compiled.seconds > _WORTH_SAYING else ""
            self._console.note(f"first step, with compilation: {self._seconds():.1f} s{more}")
            self._throughput, self._first = Throughput(), (step, self._seconds())
        elif self._skipped or not self._most_skipped:
            self.flush()  # while the devices still have the state that it left as it was

    def flush(self) -> None:
        """Reads the newest step's metrics, too.

        Raises:
          Diverged: too many steps up to it were skipped, or a number of it leaps up.
        """
        if self._pending is None:
            return
        (step, metrics, limits), self._pending = self._pending, None
        loss, skipped = float(metrics["loss"]), int(metrics["skipped"])
        self._skipped = skipped
        self._console.advance(step, loss)
        if self._throughput is not None:
            self._throughput.add(self._work.items)
        if step % self._log_interval == 0 or self._throughput is None or skipped:
            self._log(step, loss, metrics)
        above = _above(step, metrics, limits) if skipped else None
        if skipped > self._most_skipped:
            raise Diverged((above or _not_finite(step, metrics)) + _before(skipped), step, skipped)
        if above and self._spiked is not None:
            self._spiked(step, f"{above}; it changed nothing")
        for name, leaps in self._leaps.items():
            problem = leaps.found(step, float(metrics[name])) if leaps.looks else None
            if problem is None or self._skips_spikes:
                continue
            if self._spiked is None:
                raise Diverged(problem, step)
            self._spiked(step, problem)

    def recent(self) -> dict[str, list[float | None]]:
        """The last numbers that new ones are compared with, as JSON has them, by name."""
        return {name: leaps.last for name, leaps in self._leaps.items()}

    def held_out(self, step: int, loss: float, **others: float) -> None:
        """Takes the loss on held-out text after a step, and what it is to be compared with.

        Raises:
          Diverged: the loss is not finite.
        """
        self._write(step, {"held_out_loss": loss, **others, "seconds": self._seconds()})
        if not math.isfinite(loss):
            raise Diverged(f"the held-out loss after step {step} is {loss}", step)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keeps what happens inside out of the speed; all steps before it are read first."""
        self.flush()
        with self._throughput.paused() if self._throughput is not None else nullcontext():
            yield

    def _log(self, step: int, loss: float, metrics: Mapping[str, Any]) -> None:
        scalars = {
            "loss": loss,
            "learning_rate": float(self._learning_rates[step - 1]),
            "grad_norm": float(metrics["grad_norm"]),
        }
        scalars |= {name: float(metrics[name]) for name in ("loss_scale",) if name in metrics}
        if int(metrics["skipped"]):
            scalars["skipped"] = float(metrics["skipped"])
        layers = metrics.get("layer_norms", {})
        scalars |= {f"grad_norm/{name}": float(norm) for name, norm in layers.items()}
        seen = {} if self._work.bubble is None else {"bubble": self._work.bubble}
        if self._throughput is not None:
            rate = self._throughput.read()
            scalars[f"{self._work.unit}_per_second"] = rate
            if (mfu := self._work.mfu(rate)) is not None:
                scalars["mfu"] = mfu
            seen["seconds_left"] = self._seconds_left(step)
        if self._memory is not None:
            memory = self._memory()
            scalars[f"{memory.of}_memory_bytes"] = memory.bytes
        self._write(step, {**scalars, "seconds": self._seconds()}, seen)

    def _seconds_left(self, step: int) -> float:
        """At the pace since the first step, with all that came between."""
        first, then = self._first
        each = (self._seconds() - then) / max(1, step - first)
        return each * (len(self._learning_rates) - step)

    def _write(
        self, step: int, scalars: Mapping[str, float], seen: Mapping[str, float] | None = None
    ) -> None:
        """Hands metrics on; what is only to be `seen` goes to the console."""
        self._console.write(step, {**scalars, **(seen or {})})
        self._sinks.write(step, scalars)

    def _seconds(self) -> float:
        return time.perf_counter() - self._start


def _above(step: int, metrics: Mapping[str, Any], limits: Mapping[str, float]) -> str | None:
    """Which number of a step is above its limit, if all are finite."""
    if not all(math.isfinite(float(metrics[name])) for name in ("loss", "grad_norm")):
        return None
    for name, limit in limits.items():
        if (number := float(metrics[name])) > limit:
            return f"the {name.replace('_', ' ')} of step {step} is {number:.4g}, above {limit:.4g}"
    return None


def _not_finite(step: int, metrics: Mapping[str, Any]) -> str:
    """What of a step is not finite."""
    loss, where = float(metrics["loss"]), _where(metrics.get("layer_norms", {}))
    if math.isfinite(loss):
        return f"the gradients of step {step} are not finite{where}"
    return f"the loss of step {step} is {loss}{where}"


def _before(skipped: int) -> str:
    """What was skipped before the last of so many steps."""
    if skipped < 3:
        return ", and the step before was skipped too" if skipped == 2 else ""
    return f", and the {skipped - 1} steps before were skipped too"


def _where(norms: Mapping[str, Any]) -> str:
    """In which layers gradients are not finite, if that is known."""
    names = [name for name, norm in norms.items() if not math.isfinite(float(norm))]
    if not names:
        return ""
    if len(names) == len(norms):
        return "; those of all layers"
    return f"; those of {', '.join(first_few(names))}, of {len(norms)} layers"
