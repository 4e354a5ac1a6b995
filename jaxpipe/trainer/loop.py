"""Trains, with metrics, evaluations and checkpoints on the way.

Steps are counted from 1. The batch of a step is a pure function of (seed, step), and a checkpoint
holds the rest, so a resumed run gives the numbers that an uninterrupted one gives.

Where there are several processes all of them run this, each with its own rows of every batch. The
first one prints and writes metrics; checkpoints are written by all together.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jaxpipe.checkpoint import Checkpoints
from jaxpipe.config import RunDirectory, by_field
from jaxpipe.crashes import Crashes
from jaxpipe.data import Batch, Batches, Dataset
from jaxpipe.engine import Engine
from jaxpipe.errors import DataTimeoutError
from jaxpipe.mesh import describe_mesh
from jaxpipe.metrics import Console, Diverged, Report
from jaxpipe.prepare import batches_of, bigram_loss_of, held_out_batches
from jaxpipe.processes import ALONE, Processes
from jaxpipe.processes.facts import code_facts
from jaxpipe.sections import Sections
from jaxpipe.state import TrainState
from jaxpipe.trainer.evaluate import evaluate
from jaxpipe.trainer.facts import about
from jaxpipe.trainer.outcome import Outcome
from jaxpipe.trainer.reporting import reporting
from jaxpipe.watch import Watchdog, last_hang


def train(
    engine: Engine,
    folder: RunDirectory,
    dataset: Dataset,
    console: Console,
    should_stop: Callable[[], bool] = lambda: False,
    processes: Processes = ALONE,
    sections: Sections | None = None,
) -> Outcome:
    """The loop. Arguments, result and errors as `run`; `folder` says what to train, and where.

    `sections` are entered on the way, so that others can listen.
    """
    trainer = folder.config.trainer
    sections = Sections() if sections is None else sections
    rows = engine.local_rows(trainer.batch_size)
    batches = batches_of(folder.config, dataset, rows)
    held_out = held_out_batches(folder.config, dataset)
    bigram_loss = bigram_loss_of(dataset, held_out)
    held_out = [{name: field[rows] for name, field in whole.items()} for whole in held_out]
    example = batches[1]
    plan = str(engine.partition(example)), str(engine.schedule)
    _show(engine, plan, console)
    crashes = _opened(folder, plan, console, processes)
    with contextlib.ExitStack() as stack:
        limits = folder.config.watch.limits
        noted = {"facts": crashes.facts}
        stack.enter_context(
            Watchdog(sections, limits, folder.path, processes=processes, facts=noted)
        )
        stack.enter_context(crashes.noted())
        starting = stack.enter_context(contextlib.ExitStack())
        starting.enter_context(sections.enter("start"))
        stack.callback(console.close)
        checkpoints = Checkpoints(
            folder.checkpoints,
            keep=trainer.keep_checkpoints,
            keep_interval=trainer.keep_interval,
            keep_best=trainer.keep_best,
            patience=trainer.checkpoint_patience,
        )
        stack.enter_context(checkpoints)
        stack.enter_context(_pointing_to(checkpoints))
        for path in checkpoints.open():
            console.note(f"a save that was never finished is cleared: {path}")
        if (checkpoints.latest() or 0) < trainer.steps:
            checkpoints.check_room(engine.abstract_state(example))
        said = about(engine, folder.config, engine.partition(example), dataset)
        run = _Run(
            engine, folder, batches, held_out, bigram_loss, checkpoints, said, console,
            should_stop, processes, crashes, sections,
        )  # fmt: skip
        at = run.newest()
        starting.close()
        return run.to_the_end(at)


def _show(engine: Engine, plan: Sequence[str], console: Console) -> None:
    """Says what is about to be trained, and how."""
    console.note("\n" + "\n\n".join([*plan, str(describe_mesh(engine.mesh))]) + "\n")
    if options := engine.compiler_options():
        shown = ", ".join(f"{name}={value}" for name, value in options.items())
        console.note(f"compiler options: {shown}\n")


def _opened(
    folder: RunDirectory, plan: Sequence[str], console: Console, processes: Processes
) -> Crashes:
    """Opens the folder, if all have the same plan; and what has ended earlier starts.

    Raises:
      ProcessError: plans differ.
      CrashLoop: the last starts have all ended in the same way.
    """
    facts = by_field(folder.config) | code_facts()
    if processes.is_first:
        folder.open()
        if hang := last_hang(folder.path):
            console.note(f"the last start did not go on: {hang}")
            Crashes(folder.path, facts).hung(hang)
    processes.compare({"partition": plan[0], "schedule": plan[1]})
    crashes = Crashes(folder.path, facts, processes.index)
    crashes.check()
    return crashes


class _Position(NamedTuple):
    """Where a run is.

    Attributes:
      state: after `step`.
      step: steps that are done.
      batch: the number of the batch that comes next.
    """

    state: TrainState
    step: int
    batch: int


class _Run(NamedTuple):
    """What does not change in a run."""

    engine: Engine
    folder: RunDirectory
    batches: Batches
    held_out: Sequence[Batch]
    bigram_loss: float | None
    checkpoints: Checkpoints
    about: Mapping[str, Any]
    console: Console
    should_stop: Callable[[], bool]
    processes: Processes
    crashes: Crashes
    sections: Sections

    def newest(self) -> _Position:
        """The newest checkpoint that is sound, or a new state."""
        seed, batch = self.folder.config.trainer.seed, self.batches[1]
        with self.sections.enter("restore"):
            step, damaged = self.checkpoints.newest()
        for problem in damaged:
            self.console.note(f"LOST: {problem}")
        if step is None:
            return _Position(self.engine.init(jax.random.key(seed), batch), 0, 1)
        self.console.note(f"resuming from step {step}: {self.checkpoints.path(step)}")
        with self.sections.enter("restore", step):
            state = self.checkpoints.restore(step, self.engine.abstract_state(batch))
        data = self.checkpoints.manifest(step).metadata["data"]
        return _Position(state, step, data["next_batch"])

    def to_the_end(self, at: _Position) -> Outcome:
        """Trains; goes back to the newest checkpoint where it diverges, as often as it may."""
        for _ in range(self.folder.config.trainer.rollbacks):
            try:
                return self.going_on(at)
            except Diverged as error:
                self.console.note(f"ROLLED BACK: {error}")
                # The same batches would end in the same way (arXiv:2204.02311, section 5.1).
                batch = at.batch + error.step - at.step
            at = self.newest()._replace(batch=batch)
            self.console.note(f"going on from step {at.step}, with batches from {batch} on")
        return self.going_on(at)

    def going_on(self, at: _Position) -> Outcome:
        """Trains from there to the end, or until it is stopped."""
        with reporting(self.folder, self.console, at.step, self.processes.is_first) as report:
            return self._steps(at, report)

    def _steps(self, at: _Position, report: Report) -> Outcome:
        trainer, state, held_out = self.folder.config.trainer, at.state, None
        batches = self.batches.from_(at.batch, self.folder.config.watch.data)
        # Asked already, while it was restored: there is nothing new to save.
        step, stop = at.step, at.step > 0 and self._stops()
        end = at.step if stop else trainer.steps
        for step in range(at.step + 1, end + 1):
            number, self.crashes.step = at.batch + step - at.step - 1, step
            batch = self._next(batches, step)
            with self.sections.enter("compile" if step == at.step + 1 else "step", step):
                state, metrics = self.engine.train_batch(state, batch)
                report.step(step, metrics)
                stop = self._stops()
            last, found = step == trainer.steps, None
            if (last or step % trainer.eval_interval == 0) and not stop:
                with report.paused():
                    found = self._evaluated(step, state)
                stop = found is None
                if found is not None:
                    held_out = found
                    report.held_out(step, found["loss"], **self._beside(found))
            if stop or last or step % trainer.checkpoint_interval == 0:
                with report.paused():
                    self._save(step, state, (found or {}).get("loss"), number + 1)
            for failure in self.checkpoints.failures():
                self.console.note(f"NOT SAVED: {failure}")
            if stop:
                break
        if step == at.step and not stop:  # an earlier run did it all
            held_out = self._evaluated(step, state)
            stop = held_out is None
        with self.sections.enter("save", step):
            self.checkpoints.wait()
        path, ending = self.checkpoints.path(step), "interrupted" if stop else "finished"
        known = {} if held_out is None or stop else held_out
        loss, accuracy = known.get("loss", math.nan), known.get("accuracy")
        return Outcome(ending, step, path, loss, self.bigram_loss, accuracy)

    def _beside(self, found: Mapping[str, float]) -> dict[str, float]:
        """What is told of an evaluation besides its loss."""
        others = {f"held_out_{name}": mean for name, mean in found.items() if name != "loss"}
        return others if self.bigram_loss is None else others | {"bigram_loss": self.bigram_loss}

    def _next(self, batches: Iterator[Batch], step: int) -> Batch:
        with self.sections.enter("data", step):
            try:
                return next(batches)
            except DataTimeoutError as error:
                raise DataTimeoutError(f"step {step}: {error}") from None

    def _stops(self) -> bool:
        return self.processes.stop_together(self.should_stop())

    def _evaluated(self, step: int, state: TrainState) -> dict[str, float] | None:
        with self.sections.enter("evaluation", step):
            return evaluate(self.engine, state, self.held_out, self._stops)

    def _save(self, step: int, state: TrainState, metric: float | None, next_batch: int) -> None:
        data = dict(self.about["data"]) | {"next_batch": next_batch}
        metadata = dict(self.about) | {"data": data}
        with self.sections.enter("save", step):
            self.checkpoints.save(step, state, metric=metric, metadata=metadata)


@contextlib.contextmanager
def _pointing_to(checkpoints: Checkpoints) -> Iterator[None]:
    """Says where the last good checkpoint is when training diverges."""
    try:
        yield
    except Diverged as error:
        checkpoints.wait()
        latest = checkpoints.latest()
        where = "there is no checkpoint yet" if latest is None else checkpoints.path(latest)
        raise Diverged(
            f"{error}. Training stops; last good checkpoint: {where}. Try a lower"
            " optimizer.learning_rate or optimizer.clip_norm; --resume must goes on from the"
            " checkpoint with other settings, trainer.rollbacks with other batches.",
            error.step,
        ) from None
