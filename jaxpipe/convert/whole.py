"""Whole checkpoints to and from other libraries: what `jaxpipe export` and `import` do."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxpipe.checkpoint import Checkpoints, Leaves, newest_below
from jaxpipe.convert.families import describe_model, described_model
from jaxpipe.convert.huggingface import copy_tokenizer, read_huggingface, write_huggingface
from jaxpipe.convert.tensors import write_tensors
from jaxpipe.data import TOKENIZER_FILE


class Imported(NamedTuple):
    """A model that has become a checkpoint.

    Attributes:
      config: its sizes, a `GPTConfig` or `LlamaConfig`.
      checkpoint: its folder.
      tokenizer: the `tokenizer.json` that was kept beside it; None where there is none.
    """

    config: Any
    checkpoint: Path
    tokenizer: Path | None


def export_checkpoint(
    path: Path,
    out: Path,
    to: Literal["safetensors", "huggingface"],
    *,
    dtype: str | None = None,
    vocab_size: int | None = None,
) -> Path:
    """Writes the parameters of a checkpoint for other libraries, a layer at a time.

    Args:
      path: of a checkpoint, or of the folder of a run or of its checkpoints: then the newest.
      out: the folder to write, new or empty.
      to: "safetensors" writes them under their own names, "huggingface" as `transformers` has a
        GPT-2 or a Llama, and with them a tokenizer that the run has learnt.
      dtype: floats are cast to it, `"bfloat16"` say; by default they stay as they are.
      vocab_size: for "huggingface", how many ids to write, where the model has room for more.

    Returns:
      The checkpoint that was written.

    Raises:
      CheckpointError: there is none, or it is damaged.
      ConvertError: the folder holds something, or the model is none that `transformers` has.
    """
    found = newest_below(path)
    leaves = Leaves(found)
    if to == "safetensors":
        write_tensors(leaves, out, dtype)
        return found
    config = described_model(leaves.manifest.metadata, found)
    write_huggingface(leaves, config, out, dtype=dtype, vocab_size=vocab_size)
    for file in tokenizer_places(found):
        if copy_tokenizer(file.parent, out):
            break  # further up there may be another model's
    return found


def import_checkpoint(
    folder: Path, out: Path, *, dtype: str = "float32", vocab_size: int | None = None
) -> Imported:
    """Reads a GPT-2 or Llama of `transformers` into a checkpoint, a layer at a time.

    The checkpoint has step 0 and parameters alone. `pretrained.settings_for` gives the lines of a
    configuration that trains on from there.

    Args:
      folder: with `config.json` and safetensors files, and perhaps `tokenizer.json`.
      out: the folder of checkpoints to write to.
      dtype: of the parameters.
      vocab_size: room for ids, if more than there are: a multiple of `tensor`, say. The rest are
        zeros.

    Raises:
      ConvertError: the folder has no such files, or the model is none that jaxpipe has.
      CheckpointError: `out` cannot be written to.
    """
    found = read_huggingface(folder, dtype=dtype, vocab_size=vocab_size)
    about = {"model": describe_model(found.config)}
    with Checkpoints(out) as checkpoints:
        checkpoints.save(0, {"params": found.params}, metadata=about)
        path = checkpoints.path(0)
    return Imported(found.config, path, copy_tokenizer(folder, out))


def tokenizer_places(checkpoint: Path) -> list[Path]:
    """Where the tokenizer of a checkpoint may be: an import keeps it beside, a run above."""
    return [folder / TOKENIZER_FILE for folder in checkpoint.absolute().parents[:2]]
