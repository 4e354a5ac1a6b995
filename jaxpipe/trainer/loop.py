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
from jaxpipe.config import Config, RunDirectory, by_field
from jaxpipe.crashes import Crashes
from jaxpipe.data import Batch, Batches, Corpus, Dataset, Subwords
from jaxpipe.engine import Engine
from jaxpipe.errors import CorruptStateError, DataTimeoutError, JaxpipeError
from jaxpipe.exhaustion import memory_explained
from jaxpipe.mesh import describe_mesh
from jaxpipe.metrics import Console, Diverged, Report, StepWork
from jaxpipe.partition import Partition
from jaxpipe.prepare import batches_of, bigram_loss_of, held_out_batches
from jaxpipe.pretrained import start_of, start_params
from jaxpipe.processes import ALONE, Processes
from jaxpipe.processes.facts import code_facts
from jaxpipe.replicas import Replicas
from jaxpipe.sections import Sections
from jaxpipe.state import TrainState
from jaxpipe.summary import StepRecord
from jaxpipe.trainer.evaluate import evaluate
from jaxpipe.trainer.facts import about
from jaxpipe.trainer.outcome import Outcome
from jaxpipe.trainer.records import Records, recording
from jaxpipe.trainer.reporting import SinkOpener, reporting
from jaxpipe.trainer.work import measured, step_record, step_work
from jaxpipe.watch import Watchdog, last_hang


def train(
    engine: Engine,
    folder: RunDirectory,
    dataset: Dataset,
    console: Console,
    should_stop: Callable[[], bool] = lambda: False,
    processes: Processes = ALONE,
    sections: Sections | None = None,
    *,
    sinks: Mapping[str, SinkOpener] | None = None,
) -> Outcome:
    """The loop. Arguments, result and errors as `run`; `folder` says what to train, and where.

    `sections` are entered on the way, so that others can listen.
    """
    sections = Sections() if sections is None else sections
    interval = folder.config.metrics.heartbeat
    with recording(console, sections, processes, interval) as records:
        return train_recorded(engine, folder, dataset, records, should_stop, processes, sinks=sinks)


def train_recorded(
    engine: Engine,
    folder: RunDirectory,
    dataset: Dataset,
    records: Records,
    should_stop: Callable[[], bool],
    processes: Processes,
    *,
    sinks: Mapping[str, SinkOpener] | None = None,
) -> Outcome:
    """The loop, with records that are kept already."""
    config, own = folder.config, (sinks or {}) if processes.is_first else None
    with records.sections.enter("start"):
        plan = _planned(engine, config, dataset, records)
        crashes = _opened(engine, folder, dataset, plan, records, processes)
    guard = Watchdog(
        records.sections,
        config.watch.limits,
        folder.path,
        processes=processes,
        facts={"facts": crashes.facts},
    )
    with guard, crashes.noted(), _checkpoints(folder, records) as checkpoints:
        run = _Run(engine, folder, plan, checkpoints, records, should_stop, processes, crashes, own)
        outcome = run.to_the_end()
    records.end(outcome.ending)
    return outcome


class _Plan(NamedTuple):
    """What is known of a run before it starts: its data, and what a step does.

    Attributes:
      batches: this process's rows of those to train on.
      held_out: and of those to evaluate on.
      bigram_loss: what a byte-bigram model loses on these.
      partition: of the model.
      about: for checkpoints.
      work: of a step.
      step: on paper.
    """

    batches: Batches
    held_out: Sequence[Batch]
    bigram_loss: float | None
    partition: Partition
    about: Mapping[str, Any]
    work: StepWork
    step: StepRecord


def _planned(engine: Engine, config: Config, dataset: Dataset, records: Records) -> _Plan:
    """The plan, which is said, too."""
    rows = engine.local_rows(config.trainer.batch_size)
    batches = batches_of(config, dataset, rows)
    held_out = held_out_batches(config, dataset)
    bigram_loss = bigram_loss_of(dataset, held_out)
    held_out = [{name: field[rows] for name, field in whole.items()} for whole in held_out]
    partition = engine.partition(batches[1])
    plan = partition, engine.schedule, describe_mesh(engine.mesh)
    records.note("\n" + "\n\n".join(map(str, plan)) + "\n")
    if options := engine.compiler_options():
        shown = ", ".join(f"{name}={value}" for name, value in options.items())
        records.note(f"compiler options: {shown}\n")
    said = about(engine, config, partition, dataset)
    work = step_work(engine, config, batches[1])
    step = step_record(engine, config, partition)
    return _Plan(batches, held_out, bigram_loss, partition, said, work, step)


def _opened(
    engine: Engine,
    folder: RunDirectory,
    dataset: Dataset,
    plan: _Plan,
    records: Records,
    processes: Processes,
) -> Crashes:
    """Opens the folder, if all have the same plan; and what has ended earlier starts.

    Raises:
      ProcessError: plans differ.
      CrashLoop: the last starts have all ended in the same way.
    """
    facts = by_field(folder.config) | code_facts()
    hang = None
    if processes.is_first:
        folder.open()
        if isinstance(dataset, Corpus) and isinstance(dataset.tokenizer, Subwords):
            dataset.tokenizer.save(folder.tokenizer_file)
        if hang := last_hang(folder.path):
            records.note(f"the last start did not go on: {hang}")
            Crashes(folder.path, facts).hung(hang)
    said = {"partition": str(plan.partition), "schedule": str(engine.schedule)}
    processes.compare(said)
    rows = engine.local_rows(folder.config.trainer.batch_size)
    processes.compare_rows(rows, [plan.batches[number] for number in (1, 2)])
    records.start(folder, plan.step, about=plan.about, data=str(dataset), hang=hang, **said)
    crashes = Crashes(folder.path, facts, processes.index)
    crashes.check()
    return crashes


@contextlib.contextmanager
def _checkpoints(folder: RunDirectory, records: Records) -> Iterator[Checkpoints]:
    """The run's checkpoints, ready to be read and written."""
    trainer = folder.config.trainer
    checkpoints = Checkpoints(
        folder.checkpoints,
        keep=trainer.keep_checkpoints,
        keep_interval=trainer.keep_interval,
        keep_best=trainer.keep_best,
        patience=trainer.checkpoint_patience,
    )
    with checkpoints, _pointing_to(checkpoints):
        for path in checkpoints.open():
            records.note(f"a save that was never finished is cleared: {path}")
        yield checkpoints


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
    plan: _Plan
    checkpoints: Checkpoints
    records: Records
    should_stop: Callable[[], bool]
    processes: Processes
    crashes: Crashes
    sinks: Mapping[str, SinkOpener] | None

    def to_the_end(self) -> Outcome:
        """Trains from the newest checkpoint, and after a rollback again."""
        trainer, records = self.folder.config.trainer, self.records
        with records.sections.enter("start"):
            if (self.checkpoints.latest() or 0) < trainer.steps:
                self.checkpoints.check_room(self.engine.abstract_state(self.plan.batches[1]))
        at = self.newest()
        for _ in range(trainer.rollbacks):
            try:
                return self.going_on(at)
            except Diverged as error:
                # The same batches would end in the same way (arXiv:2204.02311, section 5.1).
                batch_number = at.batch + error.step - at.step
                problem, where = str(error), error.step
            except CorruptStateError as error:
                batch_number, problem, where = None, str(error), self.crashes.step
            records.note(f"ROLLED BACK: {problem}")
            at = self.newest()
            if batch_number is not None:
                at = at._replace(batch=batch_number)
            records.note(f"going on from step {at.step}, with batches from {at.batch} on")
            records.history.add("rolled back", step=where, to=at.step, problem=problem)
        return self.going_on(at)

    def newest(self) -> _Position:
        """The newest checkpoint that is sound, or a new state."""
        seed, batch = self.folder.config.trainer.seed, self.plan.batches[1]
        records = self.records
        with records.sections.enter("restore"):
            step, damaged = self.checkpoints.newest()
        for problem in damaged:
            records.note(f"LOST: {problem}")
            records.history.add("lost", problem=str(problem))
        if step is None:
            return _Position(self._fresh(jax.random.key(seed), batch), 0, 1)
        records.note(f"resuming from step {step}: {self.checkpoints.path(step)}")
        records.history.add("resumed", step=step)
        with records.sections.enter("restore", step):
            state = self.checkpoints.restore(step, self.engine.abstract_state(batch))
        data = self.checkpoints.manifest(step).metadata["data"]
        return _Position(state, step, data["next_batch"])

    def _fresh(self, key: jax.Array, batch: Batch) -> TrainState:
        """A state before the first step, with the parameters that the run starts from, if any."""
        path = start_of(self.folder.config)
        if path is None:
            with self.records.sections.enter("start"):
                return self.engine.init(key, batch)
        self.records.note(f"starting from the parameters in {path}")
        with self.records.sections.enter("restore"):
            params = start_params(path, self.engine.abstract_state(batch).params)
        with self.records.sections.enter("start"):
            return self.engine.init(key, batch, params)

    def going_on(self, at: _Position) -> Outcome:
        """Trains from there to the end, or until it is stopped."""
        with contextlib.ExitStack() as stack:
            with self.records.sections.enter("start"):
                opened = reporting(self.folder, self.records, at.step, self.plan.work, self.sinks)
                report = stack.enter_context(opened)
            self.records.say_compiled("before the first step")
            return self._steps(at, report)

    def _steps(self, at: _Position, report: Report) -> Outcome:
        trainer, state, held_out = self.folder.config.trainer, at.state, None
        batches = self.plan.batches.from_(at.batch, self.folder.config.watch.data)
        replicas = Replicas(self.engine.mesh)
        # Asked already, while it was restored: there is nothing new to save.
        step, stop = at.step, at.step > 0 and self._stops()
        end = at.step if stop else trainer.steps
        for step in range(at.step + 1, end + 1):
            number, self.crashes.step = at.batch + step - at.step - 1, step
            batch = self._next(batches, step)
            with (
                self.records.sections.enter("compile" if step == at.step + 1 else "step", step),
                memory_explained(self.engine, batch),
            ):
                state, metrics = self.engine.train_batch(state, batch)
                report.step(step, metrics)
                stop = self._stops()
            last, found = step == trainer.steps, None
            if (last or step % trainer.eval_interval == 0) and not stop:
                found = self._evaluated(step, state, report)
                stop = found is None
                if found is not None:
                    held_out = found
                    report.held_out(step, found["loss"], **self._beside(found))
            saves = stop or last or step % trainer.checkpoint_interval == 0
            if trainer.check_interval and (saves or step % trainer.check_interval == 0):
                with self.records.sections.enter("step", step), report.paused():
                    replicas.check(state)
            if saves:
                with report.paused():
                    self._save(step, state, (found or {}).get("loss"), number + 1)
            for failure in self.checkpoints.failures():
                self.records.note(f"NOT SAVED: {failure}")
                self.records.history.add("not saved", step=step, problem=str(failure))
            if stop:
                break
        if step == at.step and not stop:  # an earlier run did it all
            held_out = self._evaluated(step, state, report)
            stop = held_out is None
        with self.records.sections.enter("save", step):
            self.checkpoints.wait()
        if step > at.step and not stop:
            self._measure(step, state)
        path, ending = self.checkpoints.path(step), "interrupted" if stop else "finished"
        known = {} if held_out is None or stop else held_out
        loss, accuracy = known.get("loss", math.nan), known.get("accuracy")
        return Outcome(ending, step, path, loss, self.plan.bigram_loss, accuracy)

    def _beside(self, found: Mapping[str, float]) -> dict[str, float]:
        """What is told of an evaluation besides its loss."""
        others = {f"held_out_{name}": mean for name, mean in found.items() if name != "loss"}
        bigram = self.plan.bigram_loss
        return others if bigram is None else others | {"bigram_loss": bigram}

    def _evaluated(self, step: int, state: TrainState, report: Report) -> dict[str, float] | None:
        """Means over the held-out batches; None if it is to stop before."""
        with self.records.sections.enter("evaluation", step), report.paused():
            self.records.compiled()  # what came before is none of the evaluation's
            found = evaluate(self.engine, state, self.plan.held_out, self._stops)
            self.records.say_compiled("first evaluation")
        return found

    def _next(self, batches: Iterator[Batch], step: int) -> Batch:
        with self.records.sections.enter("data", step):
            try:
                return next(batches)
            except DataTimeoutError as error:
                raise DataTimeoutError(f"step {step}: {error}") from None

    def _measure(self, step: int, state: TrainState) -> None:
        """Measures what no one needs any more for the run's summary: the state is used up."""
        if not self.folder.config.metrics.timeline or self.processes.count > 1:
            return
        with self.records.sections.enter("timeline", step):
            try:
                found = measured(self.plan.step, self.engine, state, self.plan.batches[1])
            except (JaxpipeError, RuntimeError, ValueError, OSError) as error:
                self.records.note(f"no measured timeline: {error}")
                return
            self.records.keep_step(found)

    def _stops(self) -> bool:
        return self.processes.stop_together(self.should_stop())

    def _save(self, step: int, state: TrainState, metric: float | None, next_batch: int) -> None:
        data = dict(self.plan.about["data"]) | {"next_batch": next_batch}
        metadata = dict(self.plan.about) | {"data": data}
        with self.records.sections.enter("save", step):
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
