"""Finds what is wrong with a configuration before anything starts: all of it, at once.

Only integers and names are looked at here. No JAX backend starts, so that a mistake costs a second
on a laptop and not a queue on a cluster.
"""

import math
import re
from collections.abc import Iterator
from pathlib import PurePath

from jaxpipe.config.schema import Config, PipelineConfig, kv_heads, vocabulary
from jaxpipe.data.tokenizer import MOST_BYTES
from jaxpipe.errors import ConfigError, PartitionError, ScheduleError, nearest
from jaxpipe.partition import METHODS, LayerCost, partition
from jaxpipe.schedules import AUTO, MOST_CHUNKS, NAMES, by_name, placements


def validate(config: Config) -> Config:
    """The configuration itself, if it can run.

    Raises:
      ConfigError: with every problem on a line of its own.
    """
    problems = [
        *_ranges(config),
        *_model(config),
        *_batch(config),
        *_tensor(config),
        *_schedule(config.pipeline),
        *_partition(config),
        *_run(config),
    ]
    if problems:
        raise ConfigError("\n".join(problems))
    return config


def nearest_multiples(number: int, divisor: int) -> tuple[int, ...]:
    """The multiples of `divisor` next to `number`, below and above; none below 1.

    >>> nearest_multiples(30, 8), nearest_multiples(3, 8), nearest_multiples(16, 8)
    ((24, 32), (8,), (16,))
    """
    below = number // divisor * divisor
    around = {below, below if below == number else below + divisor}
    return tuple(sorted(multiple for multiple in around if multiple > 0))


def _ranges(config: Config) -> Iterator[str]:
    model, data, pipeline, trainer = config.model, config.data, config.pipeline, config.trainer
    least_one = {
        "model.layers": model.layers,
        "model.width": model.width,
        "model.heads": model.heads,
        "data.sequence_length": data.sequence_length,
        "pipeline.ranks": pipeline.ranks,
        "pipeline.data": pipeline.data,
        "pipeline.tensor": pipeline.tensor,
        "pipeline.microbatches": pipeline.microbatches,
        "trainer.steps": trainer.steps,
        "trainer.batch_size": trainer.batch_size,
        "trainer.log_interval": trainer.log_interval,
        "trainer.eval_interval": trainer.eval_interval,
        "trainer.eval_batches": trainer.eval_batches,
        "trainer.checkpoint_interval": trainer.checkpoint_interval,
    }
    for name, number in least_one.items():
        if number < 1:
            yield f"{name}: got {number}, expected at least 1."
    if trainer.keep_checkpoints < 2:
        yield (
            f"trainer.keep_checkpoints: got {trainer.keep_checkpoints}, expected at least 2: with"
            " one, a disk that fills up while it is replaced leaves none."
        )
    if trainer.keep_best < 0:
        yield f"trainer.keep_best: got {trainer.keep_best}, expected 0 or more."
    if trainer.keep_interval is not None and trainer.keep_interval < 1:
        yield f"trainer.keep_interval: got {trainer.keep_interval}, expected at least 1, or null."
    if not trainer.checkpoint_patience > 0:
        yield (
            f"trainer.checkpoint_patience: got {trainer.checkpoint_patience}, expected seconds,"
            " more than 0."
        )
    if trainer.most_skipped < 0:
        yield f"trainer.most_skipped: got {trainer.most_skipped}, expected 0 or more."
    if trainer.rollbacks < 0:
        yield f"trainer.rollbacks: got {trainer.rollbacks}, expected 0 or more."
    if trainer.spike is not None and not trainer.spike > 1:
        yield f"trainer.spike: got {trainer.spike}, expected more than 1, or null."
    if not 0 <= trainer.seed < 2**32:
        yield f"trainer.seed: got {trainer.seed}, expected 0 to 2**32 - 1."
    if isinstance(pipeline.remat, int) and pipeline.remat < 1:
        yield f"pipeline.remat: got {pipeline.remat}, expected 'none', 'full' or at least 1."
    yield from _data(config)
    yield from _optimizer_ranges(config)


def _data(config: Config) -> Iterator[str]:
    data, room = config.data, config.model.vocab_size
    if not 0 < data.held_out_fraction < 1:
        yield f"data.held_out_fraction: got {data.held_out_fraction}, expected between 0 and 1."
    if data.skip_bad < 0:
        yield f"data.skip_bad: got {data.skip_bad}, expected 0 or more."
    if data.path is None and data.source not in ("text", "synthetic"):
        yield f"data.path: got null, expected a file or a folder of {data.source}."
    text = data.source not in ("tokens", "synthetic")
    ids = data.vocab_size
    if text and data.tokenizer == "train" and (ids is None or ids <= MOST_BYTES):
        yield (
            f"data.vocab_size: got {ids}, expected more than {MOST_BYTES} ids for the tokenizer to"
            " learn."
        )
    elif text and data.tokenizer != "train" and ids is not None:
        yield (
            f"data.vocab_size: got {ids}; the tokenizer says how many ids there are. Set it to"
            " null, or data.tokenizer to train."
        )
    elif ids is not None and ids < 2:
        yield f"data.vocab_size: got {ids}, expected at least 2."
    if room is not None and room < 2:
        yield f"model.vocab_size: got {room}, expected at least 2."
    elif room is not None and ids is not None and room < ids:
        yield f"model.vocab_size: got {room}, expected room for data.vocab_size = {ids} at least."


def _optimizer_ranges(config: Config) -> Iterator[str]:
    optimizer, steps = config.optimizer, config.trainer.steps
    below_one = {
        "optimizer.beta1": optimizer.beta1,
        "optimizer.beta2": optimizer.beta2,
        "model.dropout": config.model.dropout,
    }
    for name, number in below_one.items():
        if not 0 <= number < 1:
            yield f"{name}: got {number}, expected 0 or more and less than 1."
    if not (math.isfinite(optimizer.learning_rate) and optimizer.learning_rate > 0):
        yield f"optimizer.learning_rate: got {optimizer.learning_rate}, expected more than 0."
    if not (math.isfinite(optimizer.weight_decay) and optimizer.weight_decay >= 0):
        yield f"optimizer.weight_decay: got {optimizer.weight_decay}, expected 0 or more."
    if not 0 <= optimizer.final_fraction <= 1:
        yield f"optimizer.final_fraction: got {optimizer.final_fraction}, expected 0 to 1."
    if optimizer.clip_norm is not None and not optimizer.clip_norm > 0:
        yield f"optimizer.clip_norm: got {optimizer.clip_norm}, expected more than 0, or null."
    if not 0 <= optimizer.warmup_steps <= steps:
        yield (
            f"optimizer.warmup_steps: got {optimizer.warmup_steps}, expected 0 to"
            f" trainer.steps = {steps}."
        )


def _model(config: Config) -> Iterator[str]:
    width, heads = config.model.width, config.model.heads
    if width > 0 and heads > 0 and width % heads:
        near = " or ".join(map(str, nearest_multiples(width, heads)))
        yield (
            f"model.width: got {width}, which {heads} heads do not divide; try width {near},"
            " or another number of heads."
        )


def _batch(config: Config) -> Iterator[str]:
    size, microbatches, data = (
        config.trainer.batch_size,
        config.pipeline.microbatches,
        config.pipeline.data,
    )
    parts = microbatches * data
    if min(size, microbatches, data) > 0 and size % parts:
        near = " or ".join(map(str, nearest_multiples(size, parts)))
        yield (
            f"trainer.batch_size: got {size}, which is no multiple of pipeline.microbatches x"
            f" pipeline.data = {microbatches} x {data} = {parts}; try {near}."
        )


def _tensor(config: Config) -> Iterator[str]:
    """What several devices share must divide."""
    model, pipeline, tensor = config.model, config.pipeline, config.pipeline.tensor
    heads = kv_heads(model) if model.network == "llama" else model.heads
    if model.kv_heads is not None and model.network != "llama":
        yield f"model.kv_heads: got {model.kv_heads}; only llama has them. Set it to null."
    elif min(heads, model.heads) > 0 and model.heads % heads:
        near = " or ".join(map(str, nearest_multiples(model.heads, heads)))
        yield (
            f"model.heads: got {model.heads}, no multiple of model.kv_heads = {heads}; try {near}."
        )
    elif (
        model.network == "llama"
        and min(heads, model.width) > 0
        and (model.width % (2 * model.heads))
    ):
        near = " or ".join(map(str, nearest_multiples(model.width, 2 * model.heads)))
        yield (
            f"model.width: got {model.width}; llama's rotary positions take an even number of"
            f" features for each of {model.heads} heads; try {near}."
        )
    shared = {
        ("model.kv_heads" if model.network == "llama" else "model.heads"): heads,
        "model.vocab_size": vocabulary(config.model),
    }
    if pipeline.sequence_parallel:
        shared["data.sequence_length"] = config.data.sequence_length
    for name, number in shared.items():
        if tensor > 0 and number > 0 and number % tensor:
            near = " or ".join(map(str, nearest_multiples(number, tensor)))
            yield (
                f"pipeline.tensor: got {tensor}, which does not divide {name}, {number}; use"
                f" another, or {near} for {name}."
            )
    if pipeline.zero not in (0, 1, 2, 3):
        yield f"pipeline.zero: got {pipeline.zero}, expected 0, 1, 2 or 3."
    elif pipeline.zero_per == "use" and pipeline.zero < 2:
        yield (
            f"pipeline.zero_per: got 'use' with pipeline.zero = {pipeline.zero}, which shares"
            " nothing that is used within a step; use zero 2 or 3, or 'step'."
        )


def _schedule(pipeline: PipelineConfig) -> Iterator[str]:
    limit = pipeline.memory_limit
    if limit is not None and pipeline.schedule != AUTO:
        yield (
            f"pipeline.memory_limit: got {limit:g} with schedule {pipeline.schedule!r}; only auto"
            " chooses by memory. Set it to null, or the schedule to auto."
        )
    elif limit is not None and not limit > 0:
        yield f"pipeline.memory_limit: got {limit:g}, expected a positive number of bytes."
    if pipeline.schedule == AUTO:
        if pipeline.chunks is not None and pipeline.chunks < 1:
            yield f"pipeline.chunks: got {pipeline.chunks}, expected at least 1, or null."
    elif pipeline.schedule not in NAMES:
        hint = nearest(pipeline.schedule, (*NAMES, AUTO))
        yield f"pipeline.schedule: unknown {pipeline.schedule!r}; {hint}"
    elif pipeline.ranks > 0 and pipeline.microbatches > 0:
        try:
            by_name(
                pipeline.schedule, pipeline.ranks, pipeline.microbatches, num_chunks=pipeline.chunks
            )
        except ScheduleError as error:
            field = "schedule" if pipeline.chunks is None else "chunks"
            yield f"pipeline.{field}: {error}"


def _num_stages(pipeline: PipelineConfig) -> int:
    """As many as the schedule has; where that is wrong, which is said elsewhere, the ranks."""
    try:
        if pipeline.schedule == AUTO:
            counts = [len(p) for p in placements(pipeline.ranks, pipeline.chunks or MOST_CHUNKS)]
            given = pipeline.partition
            asked = len(given) - 1 if isinstance(given, tuple) else 0
            return asked if asked in counts else min(counts)
        return by_name(pipeline.schedule, pipeline.ranks, 1, num_chunks=pipeline.chunks).num_stages
    except ScheduleError:
        return pipeline.ranks


def _partition(config: Config) -> Iterator[str]:
    method, layers, ranks = config.pipeline.partition, num_layers(config), config.pipeline.ranks
    if ranks < 1 or config.model.layers < 1:
        return
    stages = _num_stages(config.pipeline)
    if stages > layers:
        each = f" ranks with {stages // ranks} stages each" if stages > ranks else ""
        yield (
            f"pipeline.ranks: got {ranks}{each}, more than the pipeline's {layers} layers"
            f" (embedding, {config.model.layers} blocks, head); use fewer ranks or more"
            " model.layers."
        )
    elif isinstance(method, tuple):
        alike = [LayerCost(str(i), "layer", 1, 1, 1) for i in range(layers)]
        try:
            partition(alike, stages, method)
        except PartitionError as error:
            yield f"pipeline.partition: {error}"
    elif method.startswith("type:"):
        try:
            re.compile(method.removeprefix("type:"))
        except re.error as error:
            yield f"pipeline.partition: {method!r} holds no regular expression: {error}."
    elif method not in METHODS:
        yield (
            f"pipeline.partition: unknown {method!r}; {nearest(method, METHODS)} A list of"
            " boundaries works, too."
        )


def num_layers(config: Config) -> int:
    """Layers of the pipeline: the embedding, the blocks and the head.

    Where these are tied, norms and positions are layers of their own.
    """
    more = 0 if not config.model.tied else 2 if config.model.network == "gpt" else 1
    return config.model.layers + 2 + more


def _run(config: Config) -> Iterator[str]:
    name = config.run.name
    if name in ("", ".", "..") or PurePath(name).name != name or "\\" in name:
        yield f"run.name: got {name!r}, expected the name of a folder, without separators."
