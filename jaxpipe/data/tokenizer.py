"""From text to ids and back: bytes, or subwords as Hugging Face's `tokenizers` has them."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxpipe.data.packages import needed
from jaxpipe.errors import DataError

_END = "<|endoftext|>"  # as GPT-2 has it
_ENDS = (_END, "</s>", "<|end_of_text|>", "<eos>")  # as others have it
TOKENIZER_FILE = "tokenizer.json"
MOST_BYTES = 256  # there are no more different ones


class Tokenizer(Protocol):
    """From text to ids and back."""

    @property
    def vocab_size(self) -> int:
        """Ids are below it."""
        ...

    @property
    def end(self) -> int | None:
        """The id that ends a document, if there is one."""
        ...

    @property
    def fingerprint(self) -> str:
        """Equal for tokenizers that give equal ids."""
        ...

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, int32 [tokens], without an end."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        ...


class Bytes:
    """A token for each byte of the text in UTF-8.

    >>> Bytes().encode(["hi"])[0].tolist(), Bytes().decode([104, 105])
    ([104, 105], 'hi')
    """

    vocab_size = MOST_BYTES
    end = None
    fingerprint = "bytes"

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, int32 [bytes]."""
        return [np.frombuffer(_utf8(text), np.uint8).astype(np.int32) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; what is no UTF-8 becomes a sign that says so."""
        return bytes(ids).decode("utf-8", "replace")


class Subwords:
    """A tokenizer in a `tokenizer.json`, as Hugging Face's libraries and this one write them.

    Args:
      path: the file.

    Raises:
      DataError: it is no such file, or the package `tokenizers` is not installed.
    """

    def __init__(self, path: Path | str) -> None:
        tokenizers = needed("tokenizers")
        self._text = text = _read(Path(path))
        try:
            self._trained: Any = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exceptions
            raise DataError(f"{path} is no tokenizer.json: {error}") from None
        self._trained.no_padding()
        self._trained.no_truncation()
        self.vocab_size: int = self._trained.get_vocab_size(with_added_tokens=True)
        ids = [self._trained.token_to_id(name) for name in _ENDS]
        self.end: int | None = next((number for number in ids if number is not None), None)
        self.fingerprint: str = hashlib.sha256(text.encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Writes a copy of its `tokenizer.json`."""
        path.write_text(self._text, encoding="utf-8")

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, int32 [tokens]; on all cores."""
        clean = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        found = self._trained.encode_batch_fast(clean, add_special_tokens=False)
        return [np.array(one.ids, np.int32) for one in found]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special ones."""
        return self._trained.decode([int(number) for number in ids])


def train_subwords(texts: Iterable[str], vocab_size: int, path: Path) -> Subwords:
    """Trains byte-level BPE, as GPT-2 has it (Radford et al., 2019), and writes it.

    Args:
      texts: to learn from.
      vocab_size: ids, at least 257: a byte each, and the end of a document.
      path: the `tokenizer.json` to write.

    Raises:
      DataError: the vocabulary is too small, or the package `tokenizers` is not installed.
    """
    tokenizers = needed("tokenizers")
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    if vocab_size <= MOST_BYTES:
        raise DataError(
            f"vocab_size={vocab_size}; expected at least {MOST_BYTES + 1}: a byte each."
        )
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = byte_level(add_prefix_space=False)
    trained.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[_END],
        initial_alphabet=byte_level.alphabet(),
        show_progress=False,
    )
    clean = (text.encode("utf-8", "replace").decode("utf-8") for text in texts)
    trained.train_from_iterator(clean, trainer)
    path.parent.mkdir(parents=True, exist_ok=True)
    trained.save(str(path))
    return Subwords(path)


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a pair, as JSON may have it
        return text.encode("utf-8", "replace")


def _read(path: Path) -> str:
    if path.is_dir():
        path = path / "tokenizer.json"
    if not path.is_file():
        raise DataError(f"{path} does not exist; expected 'bytes', or a tokenizer.json.")
    return path.read_text(encoding="utf-8")
