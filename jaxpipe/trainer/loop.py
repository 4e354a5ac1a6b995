"""Trains, with metrics, evaluations and checkpoints on the way.

Steps are counted from 1. The batch of a step is a pure function of (seed, step), and a checkpoint
holds the rest, so a resumed run gives the numbers that an uninterrupted one gives.

Where there are several processes all of them run this, each with its own rows of every batch. The
first one prints and writes metrics; checkpoints are written by all together.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping

from jaxpipe.checkpoint import Checkpoints
from jaxpipe.config import RunDirectory
from jaxpipe.data import Dataset
from jaxpipe.engine import Engine
from jaxpipe.errors import CorruptStateError, Diverged
from jaxpipe.metrics import Console
from jaxpipe.processes import ALONE, Processes
from jaxpipe.sections import Sections
from jaxpipe.trainer.outcome import Outcome
from jaxpipe.trainer.parts import Parts
from jaxpipe.trainer.position import Position, newest
from jaxpipe.trainer.records import Records, recording
from jaxpipe.trainer.reporting import SinkOpener, reporting
from jaxpipe.trainer.start import opened, planned
from jaxpipe.trainer.steps import Steps
from jaxpipe.watch import Watchdog


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
        plan = planned(engine, config, dataset, records, processes)
        crashes = opened(engine, folder, dataset, plan, records, processes)
    guard = Watchdog(
        records.sections,
        config.watch.limits,
        folder.path,
        processes=processes,
        facts={"facts": crashes.facts},
    )
    with guard, crashes.noted(), _checkpoints(folder, records) as checkpoints:
        outcome = _with_rollbacks(
            Parts(engine, folder, plan, checkpoints, records, should_stop, processes, crashes, own)
        )
    records.end(outcome.ending)
    return outcome


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


def _with_rollbacks(parts: Parts) -> Outcome:
    """Trains from the newest checkpoint, and after a rollback again."""
    records = parts.records
    with records.sections.enter("start"):
        if (parts.checkpoints.latest() or 0) < parts.trainer.steps:
            parts.checkpoints.check_room(parts.engine.abstract_state(parts.plan.batches[1]))
        if parts.stops() and parts.checkpoints.latest() is None:
            return Outcome("interrupted", 0, None, math.nan, parts.plan.bigram_loss)
    at = newest(parts)
    for _ in range(parts.trainer.rollbacks):
        try:
            return _going_on(parts, at)
        except Diverged as error:
            # The same batches would end in the same way (arXiv:2204.02311, section 5.1).
            batch_number = at.batch + error.step - at.step
            problem, where = str(error), error.step
        except CorruptStateError as error:
            batch_number, problem, where = None, str(error), parts.crashes.step
        records.note(f"ROLLED BACK: {problem}")
        at = newest(parts)
        if batch_number is not None:
            at = at._replace(batch=batch_number)
        records.note(f"going on from step {at.step}, with batches from {at.batch} on")
        records.history.add("rolled back", step=where, to=at.step, problem=problem)
    return _going_on(parts, at)


def _going_on(parts: Parts, at: Position) -> Outcome:
    """Trains from there to the end, or until it is stopped."""
    records = parts.records
    with contextlib.ExitStack() as stack:
        with records.sections.enter("start"):
            work, own = parts.plan.work, parts.sinks
            opened = reporting(parts.folder, records, at.step, work, own, at.recent)
            report = stack.enter_context(opened)
        records.say_compiled("before the first step")
        return Steps(parts, at, report).to_the_end()


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
            error.skipped,
        ) from None
