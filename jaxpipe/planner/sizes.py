"""What a run would be trained on, as far as sizes go."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxpipe.config import Config
from jaxpipe.data import Batch, first_sample
from jaxpipe.errors import ConfigError

AbstractBatch = dict[str, jax.ShapeDtypeStruct]


def abstract_batch(config: Config) -> AbstractBatch:
    """The shapes of a batch: of token samples, or of images like the first one of the data.

    Raises:
      ConfigError: it would be of images, and none is there.
      DataError: what is there are no arrays to train on.
    """
    if config.model.reads == "images":
        sample, _ = _first(config)
        rows = config.trainer.batch_size
        return {k: jax.ShapeDtypeStruct((rows, *v.shape), v.dtype) for k, v in sample.items()}
    shape = config.trainer.batch_size, config.data.sequence_length
    ids = jax.ShapeDtypeStruct(shape, jnp.int32)
    batch = dict(inputs=ids, targets=ids, weights=jax.ShapeDtypeStruct(shape, jnp.float32))
    return batch | (dict(segment_ids=ids) if config.data.packing == "packed" else {})


def with_classes(config: Config) -> Config:
    """The configuration with as many classes as its images have, where it leaves that to them.

    Raises:
      ConfigError: none of the images is there, or they have numbers for classes, or more classes.
      DataError: what is there are no arrays to train on.
    """
    if config.model.reads != "images":
        return config
    _, classes = _first(config)
    return dataclasses.replace(config, model=config.model.with_room(classes))


def _first(config: Config) -> tuple[Batch, int | None]:
    path = Path(config.data.path or "")
    if not path.exists():
        raise ConfigError(
            f"data.path: got {config.data.path!r}, which is not here, and sizes of images come with"
            " them. One image and its class will do for a plan: a .npz with `inputs` [1, height,"
            " width, channels] and `targets` [1]. Set model.classes if there are more classes."
        )
    return _read(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=1)  # alternatives ask again
def _read(path: Path, changed: int) -> tuple[Batch, int | None]:
    del changed
    return first_sample(path)
