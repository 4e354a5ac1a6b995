"""From a configuration to data: tokens, the batches to train on, and those to evaluate on."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxpipe.config import Config
from jaxpipe.data import (
    Batch,
    Batches,
    Bytes,
    Corpus,
    TokenSamples,
    fit_bigram,
    read_corpus,
    spread,
)
from jaxpipe.errors import ConfigError
from jaxpipe.processes import ALONE, Processes

_TOKENS = 24 * 3600.0  # seconds that making tokens may take; a process that dies is noticed at once
_BIGRAM = 2**26  # bytes that the baseline is fitted on


def corpus_of(
    config: Config, say: Callable[[str], None] = lambda text: None, processes: Processes = ALONE
) -> Corpus:
    """The data of a configuration; the first process makes the tokens, if that is to be done."""
    cache = Path(config.data.cache or Path(config.run.directory) / "tokens")
    if not processes.is_first:
        processes.wait(patience=_TOKENS)
    corpus = read_corpus(config.data, cache, say)
    if processes.is_first:
        processes.wait(patience=_TOKENS)
    return corpus


def resolved(config: Config, corpus: Corpus) -> Config:
    """The configuration with what only the data tell: their hash, and room for their ids.

    Raises:
      ConfigError: it asks for other data, or has too little room.
    """
    wanted, found = config.data.fingerprint, corpus.fingerprint
    if wanted not in (None, found):
        raise ConfigError(
            f"data.fingerprint: got data with hash {found}, expected {wanted}: another Python, or"
            " files that have changed. Set it to null to train on these."
        )
    room = config.model.vocabulary(corpus.vocab_size)
    if room < corpus.vocab_size:
        raise ConfigError(
            f"model.vocab_size: got {room}, expected room for the data's {corpus.vocab_size} ids at"
            " least. Set it to null for as much as they need."
        )
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, vocab_size=room),
        data=dataclasses.replace(config.data, fingerprint=found),
    )


def batches_of(config: Config, corpus: Corpus, rows: slice = slice(None)) -> Batches:
    """These rows of the batches to train on."""
    trainer = config.trainer
    samples = TokenSamples(corpus.training, config.data.sequence_length, config.data.packing)
    return Batches(samples, trainer.batch_size, seed=trainer.seed, rows=rows)


def held_out_batches(config: Config, corpus: Corpus) -> list[Batch]:
    """The batches to evaluate on, whole."""
    trainer = config.trainer
    samples = TokenSamples(corpus.held_out, config.data.sequence_length, config.data.packing)
    return spread(samples, trainer.eval_batches, trainer.batch_size)


def bigram_loss_of(corpus: Corpus, held_out: Sequence[Batch]) -> float | None:
    """What a byte-bigram model loses on these batches; None where tokens are no bytes."""
    if not isinstance(corpus.tokenizer, Bytes):
        return None
    return fit_bigram(corpus.training.ids[:_BIGRAM]).cross_entropy(held_out)
