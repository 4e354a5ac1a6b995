"""What to train on, how it becomes tokens, and these samples."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class DataConfig:
    """The text, its tokens, and the samples they make."""

    source: Literal[
        "text", "jsonl", "parquet", "arrayrecord", "huggingface", "tokens", "synthetic"
    ] = "text"
    """What there is: text, a document in each file; jsonl, parquet or arrayrecord, a document in
    each line, row or record; huggingface, a folder that datasets' save_to_disk wrote; tokens, which
    are ids already; synthetic, random ids."""
    path: str | None = None
    """A file, or a folder with files below it; null is the standard library of the Python that runs
    jaxpipe, its *.py files."""
    pattern: str | None = None
    """Names of the files below the folder that count; null: *.txt, *.jsonl and so on, by source."""
    field: str = "text"
    """The key or column that holds the text, for jsonl, parquet and huggingface."""
    skip_bad: int = 0
    """How many documents may be left out because they cannot be read; one more ends the run."""
    held_out: str | None = None
    """A file or folder like path, to evaluate on; null: part of path is held out."""
    held_out_fraction: float = 0.05
    """Share of the documents that is never trained on, between 0 and 1 (both excluded)."""
    tokenizer: str = "bytes"
    """bytes; or a tokenizer.json as Hugging Face has them; or train: byte-level BPE, learnt from
    the text that is trained on."""
    vocab_size: int | None = None
    """For tokenizer train: ids to learn; for source tokens and synthetic: ids are below it."""
    token_type: Literal["uint8", "uint16", "uint32", "int32", "int64"] = "uint16"
    """Of the ids in a file of tokens that has no header (no .npy, and not written by jaxpipe)."""
    packing: Literal["stream", "packed", "padded"] = "stream"
    """How documents fill samples: stream, one after another; packed, likewise, but none sees
    another; padded, each has samples of its own."""
    sequence_length: int = 128
    """Tokens that a sample shows the model; it predicts the next token after each of them."""
    cache: str | None = None
    """Folder for the tokens, which are made once; null: tokens/ in the folder of all runs."""
    fingerprint: str | None = None
    """Hash of the tokens. A run fills it in; where it is set, other data is refused."""
