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
        from jaxpipe.convert import export_checkpoint

        path = export_checkpoint(
            self.path, self.out, self.to, dtype=self.dtype, vocab_size=self.vocab_size
        )
        print(f"{path}: written to {self.out}")
        return 0


@dataclass(frozen=True)
class Import:
    """Read a GPT-2 or Llama of Hugging Face's transformers into a checkpoint, a layer at a time.

    The checkpoint has step 0 and parameters alone; a tokenizer.json is kept beside it. What is
    printed says how to train on from there. An example: jaxpipe import path/to/gpt2 --out gpt2-here
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
        from jaxpipe.convert import import_checkpoint
        from jaxpipe.pretrained import settings_for

        found = import_checkpoint(self.path, self.out, dtype=self.dtype, vocab_size=self.vocab_size)
        print(f"{found.config}\n{found.checkpoint}\n\nTo train on from there, set:\n")
        print(settings_for(found.config, self.out, found.tokenizer), end="")
        return 0
