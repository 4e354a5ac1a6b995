"""From a configuration to data: the batches to train on, and those to evaluate on."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxpipe.config import TOKENS_FOLDER, Config
from jaxpipe.data import (
    Batch,
    Batches,
    Bytes,
    Corpus,
    Dataset,
    fit_bigram,
    read_data,
    spread,
)
from jaxpipe.errors import ConfigError
from jaxpipe.processes import ALONE, Processes

_TOKENS = 24 * 3600.0  # seconds that making tokens may take; a process that dies is noticed at once
_BIGRAM = 2**26  # bytes that the baseline is fitted on


def dataset_of(
    config: Config, say: Callable[[str], None] = lambda text: None, processes: Processes = ALONE
) -> Dataset:
    """The data of a configuration; the first process makes the tokens, if that is to be done."""
    cache = Path(config.data.cache or Path(config.run.directory) / TOKENS_FOLDER)
    if not processes.is_first:
        processes.wait(patience=_TOKENS)
    dataset = read_data(config.data, cache, say)
    if processes.is_first:
        processes.wait(patience=_TOKENS)
    return dataset


def corpus_of(
    config: Config, say: Callable[[str], None] = lambda text: None, processes: Processes = ALONE
) -> Corpus:
    """The same, where the data are tokens.

    Raises:
      ConfigError: they are not.
    """
    dataset = dataset_of(config, say, processes)
    if not isinstance(dataset, Corpus):
        raise ConfigError(f"data.source: got {config.data.source!r}, expected text or tokens.")
    return dataset


def resolved(config: Config, dataset: Dataset) -> Config:
    """The configuration with what only the data tell: their hash, and room for their classes.

    Raises:
      ConfigError: it asks for other data, or has too little room.
    """
    wanted, found = config.data.fingerprint, dataset.fingerprint
    if wanted not in (None, found):
        raise ConfigError(
            f"data.fingerprint: got data with hash {found}, expected {wanted}: another Python, or"
            " files that have changed. Set it to null to train on these."
        )
    return dataclasses.replace(
        config,
        model=config.model.with_room(dataset.num_classes),
        data=dataclasses.replace(config.data, fingerprint=found),
    )


def batches_of(config: Config, dataset: Dataset, rows: slice = slice(None)) -> Batches:
    """These rows of the batches to train on."""
    trainer, samples = config.trainer, dataset.samples(config.data)
    name = f"data.source {config.data.source}, data.path {config.data.path}"
    return Batches(samples.training, trainer.batch_size, seed=trainer.seed, rows=rows, name=name)


def held_out_batches(config: Config, dataset: Dataset) -> list[Batch]:
    """The batches to evaluate on, whole."""
    trainer, samples = config.trainer, dataset.samples(config.data)
    return spread(samples.held_out, trainer.eval_batches, trainer.batch_size)


def bigram_loss_of(dataset: Dataset, held_out: Sequence[Batch]) -> float | None:
    """What a byte-bigram model loses on these batches; None where there are no bytes."""
    if not isinstance(dataset, Corpus) or not isinstance(dataset.tokenizer, Bytes):
        return None
    return fit_bigram(dataset.training.read(0, _BIGRAM)).cross_entropy(held_out)
