"""A model that was trained, from the folder of its run or of a checkpoint, to be used."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpipe import nn
from jaxpipe.checkpoint import checkpoint_below, read_manifest
from jaxpipe.config import Config, parse
from jaxpipe.convert import described_model, family_of, tokenizer_places
from jaxpipe.data import Bytes, Subwords, Tokenizer
from jaxpipe.engine import Engine, initialize
from jaxpipe.errors import ConfigError, ConvertError, DataError
from jaxpipe.mesh import make_mesh
from jaxpipe.model import PipelineModule
from jaxpipe.pretrained import start_params
from jaxpipe.storage import Placed


class Trained(NamedTuple):
    """A checkpoint, and what is known of its model.

    Attributes:
      path: the checkpoint's folder.
      step: it was saved after this step; 0 for a model that was imported.
      metadata: what the run said of itself.
      config: the configuration of the run, or None for a model that was imported.
    """

    path: Path
    step: int
    metadata: dict[str, Any]
    config: Config | None

    def check_reads_tokens(self) -> None:
        """Raises where there is no text to be had.

        Raises:
          ConvertError: the model is of something else.
        """
        if self.config is not None and self.config.model.reads != "tokens":
            model = self.config.model
            raise ConvertError(
                f"{self.path} is of model.network {model.network}, which reads {model.reads} and"
                " says what they are; expected a language model. `jaxpipe eval` says how good it"
                " is."
            )

    def tokenizer(self, given: str | None = None) -> Tokenizer:
        """The tokenizer of the run.

        Args:
          given: "bytes", or a `tokenizer.json` or its folder, in its place.

        Raises:
          DataError: there is none to be found.
        """
        data = None if self.config is None else self.config.data
        of_bytes = data is not None and data.is_text and data.tokenizer == "bytes"
        if given == "bytes" or (given is None and of_bytes):
            return Bytes()
        return Subwords(self.tokenizer_file() if given is None else Path(given))

    def tokenizer_file(self) -> Path:
        """The `tokenizer.json` of the run; of one of bytes there is none.

        Raises:
          DataError: there is none to be found.
        """
        files = tokenizer_places(self.path)
        if self.config is not None and self.config.data.tokenizer not in ("bytes", "train"):
            files.append(Path(self.config.data.tokenizer))
        for file in files:
            if file.exists():
                return file
        raise DataError(
            f"{self.path} is of a model of token ids, and there is no tokenizer at"
            f" {' or '.join(map(str, files))}. Say where its tokenizer.json is: --tokenizer FILE;"
            " or --tokenizer bytes, if its ids are bytes."
        )


def find_trained(path: Path, step: int | None = None) -> Trained:
    """Finds a checkpoint, and reads what it says of itself; no parameters yet.

    Args:
      path: the folder of a run, of its checkpoints, or of one of them.
      step: which one; by default the newest.

    Raises:
      CheckpointError: there is none, or it is damaged.
      ConfigError: its configuration cannot be read by this jaxpipe.
    """
    found = checkpoint_below(path, step)
    manifest = read_manifest(found)
    told = manifest.metadata.get("config")
    config = None
    if told is not None:
        config = parse(json.dumps(told), name=f"the configuration in {found}")
    return Trained(found, manifest.step, dict(manifest.metadata), config)


def generating_engine(trained: Trained, ranks: int = 1, tensor: int = 1) -> Engine:
    """An engine for a language model, which only needs to run forwards.

    Args:
      trained: from `find_trained`.
      ranks: places in the pipeline; at most as many as there are layers.
      tensor: devices that share each layer.

    Raises:
      ConvertError: the checkpoint does not say what its model is.
      MeshError: there are too few devices.
      PartitionError: there are more ranks than layers.
    """
    sizes = described_model(trained.metadata, trained.path)
    sizes = dataclasses.replace(sizes, sequence_parallel=False)
    dtype = "float32" if trained.config is None else trained.config.pipeline.compute_dtype
    model = PipelineModule(
        family_of(sizes).layers(sizes), nn.cross_entropy, compute_dtype=jnp.dtype(dtype)
    )
    mesh = make_mesh(pipe=ranks, tensor=tensor)
    engine = initialize(model, mesh=mesh, schedule="gpipe", num_microbatches=1)
    engine.partition(_example())
    return engine


def generating_params(trained: Trained, engine: Engine) -> Placed:
    """The parameters of a checkpoint alone, each device its own stages'.

    Raises:
      CheckpointError: it does not fit, or is damaged.
    """
    return restored_params(trained, engine, _example())


def restored_params(trained: Trained, engine: Engine, batch: Any) -> Placed:
    """The same for any engine, and an example of its batches."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns of what is as it should be
    like = engine.abstract_state(batch).params
    return start_params(trained.path, like)


def ranks_for(trained: Trained, wanted: int | None, tensor: int = 1) -> int:
    """How many ranks to generate on: as many as are wanted, or as the run had where they fit.

    On CPU that is one: simulated devices share its cores and its memory, and hops cost time.

    Raises:
      ConfigError: fewer than 1 are wanted.
    """
    if wanted is not None:
        if wanted < 1:
            raise ConfigError(f"ranks: got {wanted}, expected at least 1.")
        return wanted
    devices = jax.devices()
    if devices[0].platform == "cpu":
        return 1
    of_run = 1 if trained.config is None else trained.config.pipeline.ranks
    return max(1, min(of_run, len(devices) // tensor))


def _example() -> dict[str, np.ndarray]:
    tokens = np.zeros((1, 1), np.int32)
    return dict(inputs=tokens, targets=tokens)
