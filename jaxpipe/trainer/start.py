"""What comes before a run's first step: its plan, which is said, and its folder, opened."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxpipe.config import Config, RunDirectory, by_field
from jaxpipe.crashes import Crashes
from jaxpipe.data import Batch, Batches, Corpus, Dataset, Subwords
from jaxpipe.engine import Engine
from jaxpipe.mesh import describe_mesh
from jaxpipe.metrics import StepWork
from jaxpipe.partition import Partition
from jaxpipe.prepare import batches_of, bigram_loss_of, held_out_batches
from jaxpipe.processes import Processes
from jaxpipe.processes.facts import code_facts
from jaxpipe.summary import StepRecord
from jaxpipe.trainer.evaluate import num_targets
from jaxpipe.trainer.facts import about
from jaxpipe.trainer.records import Records
from jaxpipe.trainer.work import step_record, step_work
from jaxpipe.watch import last_hang


class Plan(NamedTuple):
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


def planned(
    engine: Engine, config: Config, dataset: Dataset, records: Records, processes: Processes
) -> Plan:
    """The plan, which is said, too; all processes call it together.

    Raises:
      DataError: none of the targets that are held out counts.
    """
    rows = engine.local_rows(config.trainer.batch_size)
    batches = batches_of(config, dataset, rows)
    held_out = held_out_batches(config, dataset)
    num_targets(held_out)  # a mistake that would else be found after many steps
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
    step = step_record(engine, config, partition, processes)
    return Plan(batches, held_out, bigram_loss, partition, said, work, step)


def opened(
    engine: Engine,
    folder: RunDirectory,
    dataset: Dataset,
    plan: Plan,
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
            records.note(f"the last start hung: {hang}")
            Crashes(folder.path, facts).hung(hang)
    said = {"partition": str(plan.partition), "schedule": str(engine.schedule)}
    processes.compare(said)
    rows = engine.local_rows(folder.config.trainer.batch_size)
    processes.compare_rows(rows, [plan.batches[number] for number in (1, 2)])
    records.start(folder, plan.step, about=plan.about, data=str(dataset), hang=hang, **said)
    crashes = Crashes(folder.path, facts, processes.index)
    crashes.check()
    return crashes
