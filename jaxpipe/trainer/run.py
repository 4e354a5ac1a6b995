"""From a configuration to a trained model."""

from collections.abc import Callable, Mapping

from jaxpipe.build import build_engine
from jaxpipe.config import Config, Resume, choose, validate
from jaxpipe.metrics import Console, NoConsole, console_for
from jaxpipe.prepare import dataset_of, resolved
from jaxpipe.pretrained import start_of
from jaxpipe.processes import ALONE, Processes
from jaxpipe.sections import Sections
from jaxpipe.trainer.facts import facts_of
from jaxpipe.trainer.loop import train_recorded
from jaxpipe.trainer.outcome import Outcome
from jaxpipe.trainer.records import recording
from jaxpipe.trainer.reporting import SinkOpener


def run(
    config: Config,
    *,
    resume: Resume = "auto",
    should_stop: Callable[[], bool] = lambda: False,
    console: Console | None = None,
    processes: Processes = ALONE,
    sinks: Mapping[str, SinkOpener] | None = None,
) -> Outcome:
    """Trains what a configuration describes, or goes on with it.

    Args:
      config: the run.
      resume: what to do about an earlier run in the same folder; see `config.choose`.
      should_stop: asked before the first step and after each; True ends the run there, with a
        checkpoint if there was a step. Of several processes any one may say so.
      console: where to show how it goes; by default the standard output of the first process.
      processes: all that train together, from `start_processes`.
      sinks: of one's own for metrics, by name; see `jaxpipe.metrics.Sink`. Only the first process
        opens them.

    Raises:
      JaxpipeError: the configuration, the folder, the devices or a checkpoint cannot be used, or
        processes differ in what they would train.
      CrashLoop: the last starts have all ended in the same way.
      Diverged: losses or gradients are not finite, or leap up; the message says where the last
        good checkpoint is.
    """
    validate(config)
    if console is None:
        console = console_for(config.trainer.steps) if processes.is_first else NoConsole()
    with recording(console, Sections(), processes, config.metrics.heartbeat) as records:
        with records.sections.enter("start"):
            dataset = dataset_of(config, records.note, processes)
            config = resolved(config, dataset)
            folder = choose(config, resume)
            if not folder.resume:
                start_of(config)  # before anything is built
            # Also so that all have chosen a folder before the first process changes it.
            processes.compare(facts_of(folder, dataset))
            records.note(str(dataset))
            for change in folder.changes:
                records.note(f"changed: {change}")
            engine = build_engine(config)
        return train_recorded(engine, folder, dataset, records, should_stop, processes, sinks=sinks)
