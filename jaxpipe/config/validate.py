"""Finds what is wrong with a configuration before anything starts: all of it, at once.

Only integers and names are looked at here. No JAX backend starts, so that a mistake costs a second
on a laptop and not a queue on a cluster. What is wrong with a component alone, the component says;
here is what does not fit together.
"""

from collections.abc import Iterator

from jaxpipe.config.config import Config
from jaxpipe.config.ranges import either, nearest_multiples
from jaxpipe.config.run import TOKENS_FOLDER
from jaxpipe.errors import ConfigError, PartitionError
from jaxpipe.partition import LayerCost, partition


def validate(config: Config) -> Config:
    """The configuration itself, if it can run.

    Raises:
      ConfigError: with every problem on a line of its own.
    """
    problems = problems_of(config)
    if problems:
        raise ConfigError("\n".join(problems))
    return config


def problems_of(config: Config) -> list[str]:
    """All that is wrong with a configuration; each begins with the name of the field to change.

    >>> problems_of(Config())
    []
    """
    return [
        *(problem for part in config.components.values() for problem in part.problems()),
        *_folder(config),
        *_reading(config),
        *_vocabulary(config),
        *_positions(config),
        *_warmup(config),
        *_batch(config),
        *_tensor(config),
        *_stages(config),
        *_patience(config),
    ]


def _folder(config: Config) -> Iterator[str]:
    if config.run.name == TOKENS_FOLDER and config.data.cache is None:
        yield (
            f"run.name: got {TOKENS_FOLDER!r}, the folder among runs in which tokens are kept;"
            " choose another, or set data.cache."
        )


def _reading(config: Config) -> Iterator[str]:
    model, source = config.model, config.data.source
    if (model.reads == "images") != (source == "arrays"):
        wanted = "arrays" if model.reads == "images" else "any other than arrays"
        yield (
            f"data.source: got {source!r}, but model.network = {model.network!r} reads"
            f" {model.reads}; expected {wanted}."
        )
    if config.pipeline.sequence_parallel and model.reads == "images":
        yield "pipeline.sequence_parallel: got true; vit does not cut patches. Leave it out."


def _vocabulary(config: Config) -> Iterator[str]:
    room, ids = config.model.vocab_size, config.data.vocab_size
    if room is not None and ids is not None and ids > room > 1:
        yield f"model.vocab_size: got {room}, expected room for data.vocab_size = {ids} at least."


def _positions(config: Config) -> Iterator[str]:
    learned, length = config.model.positions, config.data.sequence_length
    if learned is not None and 0 < learned < length:
        yield (
            f"model.positions: got {learned}, expected at least data.sequence_length, {length}; or"
            " null."
        )


def _warmup(config: Config) -> Iterator[str]:
    warmup, steps = config.optimizer.warmup_steps, config.trainer.steps
    if 0 < steps < warmup:
        yield (
            f"optimizer.warmup_steps: got {warmup}, expected at most as many as trainer.steps,"
            f" {steps}."
        )


def _batch(config: Config) -> Iterator[str]:
    size, pipeline = config.trainer.batch_size, config.pipeline
    parts = pipeline.microbatches * pipeline.data
    if min(size, pipeline.microbatches, pipeline.data) > 0 and size % parts:
        yield (
            f"trainer.batch_size: got {size}, which is no multiple of pipeline.microbatches x"
            f" pipeline.data = {pipeline.microbatches} x {pipeline.data} = {parts}; try"
            f" {either(nearest_multiples(size, parts))}."
        )


def _patience(config: Config) -> Iterator[str]:
    """Checkpoints name who holds them up, and training goes on: that has to come first."""
    patience = config.trainer.checkpoint_patience
    for name in ("restore", "save"):
        limit = config.watch.limits[name]
        if limit is not None and patience >= limit > 0:
            yield (
                f"watch.{name}: got {limit:g}, expected more than trainer.checkpoint_patience,"
                f" {patience:g}, or null."
            )


def _tensor(config: Config) -> Iterator[str]:
    """What several devices share must divide."""
    model, pipeline, tensor = config.model, config.pipeline, config.pipeline.tensor
    if model.network == "llama":
        shared = {"model.kv_heads": model.num_kv_heads}
    else:
        shared = {"model.heads": model.heads}
    shared["model.hidden"] = model.hidden_features
    if model.reads == "tokens":
        shared["model.vocab_size"] = model.vocabulary()
    if pipeline.sequence_parallel:
        shared["data.sequence_length"] = config.data.sequence_length
    for name, number in shared.items():
        if tensor > 0 and number > 0 and number % tensor:
            yield (
                f"pipeline.tensor: got {tensor}, which does not divide {name}, {number}; use"
                f" another, or {either(nearest_multiples(number, tensor))} for {name}."
            )


def _stages(config: Config) -> Iterator[str]:
    pipeline, layers = config.pipeline, config.model.num_layers
    if pipeline.ranks < 1 or config.model.layers < 1:
        return
    stages = pipeline.num_stages
    if stages > layers:
        each = f" ranks with {stages // pipeline.ranks} stages each"
        yield (
            f"pipeline.ranks: got {pipeline.ranks}{each if stages > pipeline.ranks else ''}, more"
            f" than the pipeline's {layers} layers (embedding, {config.model.layers} blocks, head);"
            " use fewer ranks or more model.layers."
        )
    elif isinstance(pipeline.partition, tuple):
        alike = [LayerCost(str(i), "layer", 1, 1, 1) for i in range(layers)]
        try:
            partition(alike, stages, pipeline.partition)
        except PartitionError as error:
            yield f"pipeline.partition: {error}"
