"""How well a model that was trained predicts data that are held out."""

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxpipe.build import build_engine
from jaxpipe.config import Config, DataConfig, validate
from jaxpipe.data import Bytes, Corpus
from jaxpipe.prepare import bigram_loss_of, dataset_of, held_out_batches, resolved
from jaxpipe.sections import Sections
from jaxpipe.trained import Trained, find_trained, restored_params
from jaxpipe.trainer.evaluate import evaluate, num_targets


class Evaluation(NamedTuple):
    """What was found.

    Attributes:
      checkpoint: whose parameters they were.
      step: that they were saved after.
      metrics: means over all targets: `loss`, in nats, and the model's others.
      perplexity: e to the loss.
      bits_per_byte: the loss in bits, where tokens are bytes; else None.
      bigram_loss: of a byte-bigram model fitted on what the run trains on; None for other tokens.
      targets: how many of them count.
      targets_per_second: of evaluation, without what compiling took.
      devices: how many it ran on.
    """

    checkpoint: Path
    step: int
    metrics: dict[str, float]
    perplexity: float
    bits_per_byte: float | None
    bigram_loss: float | None
    targets: int
    targets_per_second: float
    devices: int

    def as_json(self) -> dict[str, Any]:
        """The same in JSON's types, without what there is not."""
        told = self._asdict() | dict(checkpoint=str(self.checkpoint)) | self.metrics
        del told["metrics"]
        return {name: value for name, value in told.items() if value is not None}


def evaluate_run(
    path: Path,
    config: Config,
    *,
    step: int | None = None,
    other_data: bool = False,
    say: Callable[[str], None] = lambda text: None,
    sections: Sections | None = None,
) -> Evaluation:
    """Evaluates a checkpoint of a run.

    Args:
      path: the folder of the run, of its checkpoints, or of one of them.
      config: of the run; where, how much and on how many devices may be changed.
      step: which checkpoint; by default the newest.
      other_data: whether `config.data` are others than the run's: they become tokens as its did.
      say: told how far the tokens are, if they are to be made.
      sections: entered for what is done, for signs of life.

    Raises:
      JaxpipeError: there is no such checkpoint, it is of another model, the data are others than
        the run's though nobody has said so, or no target of them counts.
    """
    sections = Sections() if sections is None else sections
    trained = find_trained(path, step)
    if other_data:
        config = dataclasses.replace(config, data=_other_data(config.data, trained))
    with sections.enter("start"):
        dataset = dataset_of(validate(config), say)
        config = resolved(config, dataset)
        batches = held_out_batches(config, dataset)
        targets, engine = num_targets(batches), build_engine(config)
    with sections.enter("restore"):
        params = restored_params(trained, engine, batches[0])
    with sections.enter("compile"):
        state = dataclasses.replace(engine.abstract_state(batches[0]), params=params)
        jax.block_until_ready(engine.eval_batch(state, batches[0]))
    with sections.enter("evaluation"):
        began = time.monotonic()
        metrics = evaluate(engine, state, batches)
        seconds = time.monotonic() - began
    if metrics is None:
        raise TypeError("nobody has asked it to stop")
    of_bytes = isinstance(dataset, Corpus) and isinstance(dataset.tokenizer, Bytes)
    return Evaluation(
        trained.path, trained.step, metrics, math.exp(metrics["loss"]),
        metrics["loss"] / math.log(2) if of_bytes else None, bigram_loss_of(dataset, batches),
        targets, targets / seconds, engine.mesh.size,
    )  # fmt: skip


def _other_data(data: DataConfig, trained: Trained) -> DataConfig:
    """Data that are not the run's, made into tokens as its were."""
    data = dataclasses.replace(data, fingerprint=None)
    if data.is_text and data.tokenizer == "train":
        file = str(trained.tokenizer_file())
        data = dataclasses.replace(data, tokenizer=file, vocab_size=None)
    return data
