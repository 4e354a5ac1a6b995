"""What to train on, and how it becomes samples."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from jaxpipe.data.packages import missing
from jaxpipe.data.tokenizer import MOST_BYTES


@dataclass(frozen=True)
class DataConfig:
    """The text, its tokens, and the samples they make; or arrays of samples."""

    source: Literal[
        "text", "jsonl", "parquet", "arrayrecord", "huggingface", "tokens", "synthetic", "arrays"
    ] = "text"
    """What there is: text, a document in each file; jsonl, parquet or arrayrecord, a document in
    each line, row or record; huggingface, a folder that datasets' save_to_disk wrote; tokens, which
    are ids already; synthetic, random ids; arrays, NumPy's inputs and targets (images and their
    classes, say) in a .npz or a folder of .npy."""
    path: str | None = None
    """A file, or a folder with files below it; null is the standard library of the Python that runs
    jaxpipe, its *.py files."""
    pattern: str | None = None
    """Names of the files below the folder that count; null: *.txt, *.jsonl and so on, by source."""
    field: str = "text"
    """The key or column that holds the text, for jsonl, parquet and huggingface."""
    skip_bad: int = 0
    """How many single documents may be left out because they cannot be read; one more ends the run,
    and so does a file that is damaged or lost."""
    held_out: str | None = None
    """A file or folder like path, to evaluate on; null: part of path is held out."""
    held_out_fraction: float = 0.05
    """Share of the documents, or samples of arrays, that is never trained on, between 0 and 1 (both
    excluded)."""
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
    """Tokens that a sample shows the model; it predicts the next token after each of them. Samples
    of arrays are as long as they are."""
    cache: str | None = None
    """Folder for the tokens, which are made once; null: tokens/ in the folder of all runs."""
    fingerprint: str | None = None
    """Hash of the data. A run fills it in; where it is set, other data is refused."""

    FREE = ()

    @property
    def is_text(self) -> bool:
        """Whether a tokenizer has to make the tokens."""
        return self.source not in ("tokens", "synthetic", "arrays")

    @property
    def unit(self) -> Literal["tokens", "samples"]:
        """What a run counts."""
        return "samples" if self.source == "arrays" else "tokens"

    @property
    def units_per_sample(self) -> int:
        """How many of these a sample has."""
        return 1 if self.unit == "samples" else self.sequence_length

    def problems(self) -> Iterator[str]:
        """What is wrong with these settings, whatever the others are; a line each."""
        if self.sequence_length < 1:
            yield f"data.sequence_length: got {self.sequence_length}, expected at least 1."
        if not 0 < self.held_out_fraction < 1:
            yield f"data.held_out_fraction: got {self.held_out_fraction}, expected between 0 and 1."
        if self.skip_bad < 0:
            yield f"data.skip_bad: got {self.skip_bad}, expected at least 0."
        if self.source == "arrays":
            made = {"tokenizer": "bytes", "vocab_size": None, "packing": "stream"}
            for name, default in made.items():
                if (got := getattr(self, name)) != default:
                    yield f"data.{name}: got {got!r}; arrays make no tokens. Leave it out."
        if self.path is None and self.source not in ("text", "synthetic"):
            yield f"data.path: got null, expected a file or a folder of {self.source}."
        yield from missing(self.source, self.tokenizer if self.is_text else None)
        ids = self.vocab_size
        if self.is_text and self.tokenizer == "train" and (ids is None or ids <= MOST_BYTES):
            yield (
                f"data.vocab_size: got {ids}, expected more than {MOST_BYTES} ids for the tokenizer"
                " to learn."
            )
        elif self.is_text and self.tokenizer != "train" and ids is not None:
            yield (
                f"data.vocab_size: got {ids}; the tokenizer says how many ids there are. Set it to"
                " null, or data.tokenizer to train."
            )
        elif ids is not None and ids < 2:
            yield f"data.vocab_size: got {ids}, expected at least 2."
