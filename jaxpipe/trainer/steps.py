"""Steps, one after the other, with what is due between them."""

import math
from collections.abc import Mapping

from jaxpipe.errors import DataTimeoutError, Diverged, JaxpipeError
from jaxpipe.exhaustion import memory_explained
from jaxpipe.metrics import Report
from jaxpipe.replicas import Replicas
from jaxpipe.trainer.evaluate import evaluate
from jaxpipe.trainer.outcome import Outcome
from jaxpipe.trainer.parts import Parts
from jaxpipe.trainer.position import Position
from jaxpipe.trainer.work import measured


class Steps:
    """The steps from a position on.

    Args:
      parts: of the run.
      at: where it begins; its state is used up.
      report: takes the metrics.
    """

    def __init__(self, parts: Parts, at: Position, report: Report) -> None:
        self._parts, self._at, self._report = parts, at, report
        self._state, self._step, self._stop = at.state, at.step, False
        self._held_out: Mapping[str, float] | None = None  # what the last evaluation found
        self._batches = parts.plan.batches.starting_at(at.batch, parts.folder.config.watch.data)
        self._replicas = Replicas(parts.engine.mesh)

    def to_the_end(self) -> Outcome:
        """Trains to the last step, or until it is to stop."""
        # Asked already, while it was made or restored: there is nothing new to save then.
        self._stop = self._parts.stops()
        if self._is_last and not self._stop:  # an earlier run did it all
            self._evaluate()
        while not (self._is_last or self._stop):
            self._step += 1
            try:
                self._train()
                self._between()
            except Diverged as error:
                if error.skipped:
                    self._save_last_good(self._step - error.skipped)
                raise
        return self._ended()

    @property
    def _is_last(self) -> bool:
        return self._step >= self._parts.trainer.steps

    def _due(self, interval: int | None) -> bool:
        return interval is not None and self._step % interval == 0

    def _train(self) -> None:
        """One step."""
        parts, step = self._parts, self._step
        parts.crashes.step = step
        with parts.records.sections.enter("data", step):
            try:
                batch = next(self._batches)
            except DataTimeoutError as error:
                raise DataTimeoutError(f"step {step}: {error}") from None
        compiles = step == self._at.step + 1
        with (
            parts.records.sections.enter("compile" if compiles else "step", step),
            memory_explained(parts.engine, batch),
        ):
            limits = self._report.limits(step)
            more = () if limits is None else (limits,)
            self._state, metrics = parts.engine.train_batch(self._state, batch, *more)
            self._report.step(step, metrics, limits)
            self._stop = parts.stops()

    def _between(self) -> None:
        """What is due after a step."""
        trainer, loss = self._parts.trainer, None
        if (self._is_last or self._due(trainer.eval_interval)) and not self._stop:
            self._evaluate()
            if self._held_out is not None:
                self._report.held_out(self._step, **self._beside_the_bigram(self._held_out))
                loss = self._held_out["loss"]
        saves = self._stop or self._is_last or self._due(trainer.checkpoint_interval)
        if trainer.check_interval and (saves or self._due(trainer.check_interval)):
            self._check()
        if saves:
            self._save(loss)
        self._say_failures()

    def _save_last_good(self, step: int) -> None:
        """Saves the state after a step since which all were skipped: the devices have it still.

        If that is what is bad, and not the batches, then it has no finite loss on others either.
        """
        parts, checkpoints = self._parts, self._parts.checkpoints
        checkpoints.wait()
        if step <= max(self._at.step, checkpoints.latest() or 0):
            return
        self._step, self._state = step, self._state.as_of(step)
        with parts.records.sections.enter("evaluation", step):
            found = evaluate(parts.engine, self._state, parts.plan.held_out)
        if found is None or not math.isfinite(found["loss"]):
            parts.records.note(f"NOT SAVED: step {step}, whose held-out loss is not finite either")
            return
        if parts.trainer.check_interval:
            self._check()
        self._save(found["loss"])
        checkpoints.wait()
        self._say_failures()

    def _check(self) -> None:
        """Compares what devices hold copies of."""
        with self._parts.records.sections.enter("check", self._step), self._report.paused():
            self._replicas.check(self._state)

    def _say_failures(self) -> None:
        """Says which saves have failed."""
        for failure in self._parts.checkpoints.failures():
            self._parts.records.note(f"NOT SAVED: {failure}")
            self._parts.records.history.add("not saved", step=self._step, problem=str(failure))

    def _evaluate(self) -> None:
        """Means over the held-out batches; if it is to stop before, there are none."""
        parts = self._parts
        with parts.records.sections.enter("evaluation", self._step), self._report.paused():
            parts.records.compiled()  # what came before is none of the evaluation's
            held_out = parts.plan.held_out
            self._held_out = evaluate(parts.engine, self._state, held_out, parts.stops)
            parts.records.say_compiled("first evaluation")
        self._stop = self._held_out is None

    def _beside_the_bigram(self, found: Mapping[str, float]) -> dict[str, float]:
        """What is told of an evaluation."""
        others = {f"held_out_{name}": mean for name, mean in found.items() if name != "loss"}
        bigram = self._parts.plan.bigram_loss
        others |= {} if bigram is None else {"bigram_loss": bigram}
        return {"loss": found["loss"], **others}

    def _save(self, metric: float | None) -> None:
        parts = self._parts
        next_batch = self._at.batch + self._step - self._at.step
        data = dict(parts.plan.about["data"]) | {"next_batch": next_batch}
        with self._report.paused(), parts.records.sections.enter("save", self._step):
            recent = self._report.recent()  # of all steps so far
            metadata = dict(parts.plan.about) | {"data": data, "recent": recent}
            parts.checkpoints.save(self._step, self._state, metric=metric, metadata=metadata)

    def _ended(self) -> Outcome:
        """How it ended, when all is on disk."""
        parts, step = self._parts, self._step
        with parts.records.sections.enter("save", step):
            parts.checkpoints.wait()
        if step > self._at.step and not self._stop:
            self._measure()
        path = parts.checkpoints.path(step) if step else None
        bigram = parts.plan.bigram_loss
        if self._stop or self._held_out is None:
            return Outcome("interrupted", step, path, math.nan, bigram, None)
        loss, accuracy = self._held_out["loss"], self._held_out.get("accuracy")
        return Outcome("finished", step, path, loss, bigram, accuracy)

    def _measure(self) -> None:
        """Measures, for the run's summary, a step on the state that no one needs any more."""
        parts = self._parts
        if not parts.folder.config.metrics.timeline:
            return
        with parts.records.sections.enter("timeline", self._step):
            try:
                batch = parts.plan.batches[1]
                found = measured(parts.plan.step, parts.engine, self._state, batch, parts.processes)
            except JaxpipeError as error:
                parts.records.note(f"no measured timeline: {error}")
                return
            parts.records.keep_step(found)
