"""`jaxpipe export CHECKPOINT` and `jaxpipe import FOLDER`."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

_QUIET = "absl"  # Orbax warns of files that are not meant to be


@dataclass(frozen=True)
class Export:
    """Write the parameters of a checkpoint for other libraries, a layer at a time.

    With huggingface, a tokenizer.json that the run has learnt goes along.
    An example: jaxpipe export runs/gpt-stdlib --to huggingface --out gpt-stdlib-hf
    """

    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """A checkpoint, or the folder of a run or of its checkpoints: then the newest is written."""
    to: Literal["safetensors", "huggingface"]
    """safetensors: under their own names; huggingface: as transformers has GPT-2 and Llama."""
    out: Path
    """The folder to write, new or empty."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Number format of the files; as it is, if left out."""
    vocab_size: int | None = None
    """For huggingface: token ids to write, where the model has room for more than there are."""

    def run(self) -> int:
        """Writes, says what, and returns the exit code."""
        from jaxpipe.checkpoint import Leaves, newest_below
        from jaxpipe.convert import (
            copy_tokenizer,
            described_model,
            write_huggingface,
            write_tensors,
        )
        from jaxpipe.trained import tokenizer_places

        path = newest_below(self.path)
        leaves = Leaves(path)
        if self.to == "safetensors":
            write_tensors(leaves, self.out, self.dtype)
        else:
            config = described_model(leaves.manifest.metadata, path)
            write_huggingface(
                leaves, config, self.out, dtype=self.dtype, vocab_size=self.vocab_size
            )
            for file in tokenizer_places(path):
                if copy_tokenizer(file.parent, self.out):
                    break  # further up there may be another model's
        print(f"{path}: written to {self.out}")
        return 0


@dataclass(frozen=True)
class Import:
    """Read a GPT-2 or Llama of Hugging Face's transformers into a checkpoint, a layer at a time.

    The checkpoint has step 0 and parameters alone; a tokenizer.json is kept beside it. What is
    printed says how to train on from there. An example: jaxpipe import gpt2 --out gpt2-here
    """

    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """The folder with config.json and safetensors files."""
    out: Path
    """The folder of checkpoints to write to."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the parameters."""
    vocab_size: int | None = None
    """Room for token ids, if more than there are: a multiple of `tensor`; the rest are zeros."""

    def run(self) -> int:
        """Reads and writes, says what, and returns the exit code."""
        logging.getLogger(_QUIET).setLevel(logging.ERROR)
        from jaxpipe.checkpoint import Checkpoints
        from jaxpipe.convert import copy_tokenizer, describe_model, read_huggingface
        from jaxpipe.pretrained import settings_for

        found = read_huggingface(self.path, dtype=self.dtype, vocab_size=self.vocab_size)
        about = {"model": describe_model(found.config)}
        with Checkpoints(self.out) as checkpoints:
            checkpoints.save(0, {"params": found.params}, metadata=about)
            path = checkpoints.path(0)
        kept = copy_tokenizer(self.path, self.out)
        print(f"{found.config}\n{path}\n\nTo train on from there, set:\n")
        print(settings_for(found.config, self.out, kept), end="")
        return 0
