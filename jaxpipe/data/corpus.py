"""What to train on and what is held out, as tokens; made once, and found again.

The split depends on a document's place alone (a file's name, a line's number), so a document stays
on its side when others come or go, and nothing that was held out ever slips into training.
"""

import hashlib
import itertools
import json
import sysconfig
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from jaxpipe.data.batches import Sides
from jaxpipe.data.config import DataConfig
from jaxpipe.data.documents import Document, Documents, Kind
from jaxpipe.data.samples import TokenSamples
from jaxpipe.data.tokenizer import TOKENIZER_FILE, Bytes, Subwords, Tokenizer, train_subwords
from jaxpipe.data.tokens import Tokens, TokenWriter, open_raw, open_tokens, part_of, write_tokens
from jaxpipe.errors import DataError

_VERSION = 2  # of what a cache holds
_AT_ONCE = 256  # documents that are encoded together
_SAY = 10.0  # seconds between two words on how far it is
_SYNTHETIC = 2**20  # tokens
_DONE = "corpus.json"


class Corpus(NamedTuple):
    """Tokens to train on, and tokens held out.

    Attributes:
      training: the documents to train on.
      held_out: the others.
      tokenizer: what made them of text, if that is known.
      fingerprint: equal for equal tokens on both sides, to tell whether two machines have the same.
    """

    training: Tokens
    held_out: Tokens
    tokenizer: Tokenizer | None
    fingerprint: str

    def __str__(self) -> str:
        sides = [f"{len(side.ids):,} tokens in {len(side.ends):,} documents" for side in self[:2]]
        return f"data: {sides[0]} to train on, {sides[1]} held out, vocabulary {self.vocab_size:,}"

    @property
    def vocab_size(self) -> int:
        """Ids are below it."""
        return self.training.vocab_size

    @property
    def num_classes(self) -> int:
        """Of targets, which are ids."""
        return self.vocab_size

    def samples(self, config: DataConfig) -> Sides:
        """Both sides as samples of one length, packed as the configuration says."""
        made = lambda tokens: TokenSamples(tokens, config.sequence_length, config.packing)
        return Sides(made(self.training), made(self.held_out))


def read_corpus(
    config: DataConfig, cache: Path, say: Callable[[str], None] = lambda text: None
) -> Corpus:
    """Reads the data that a configuration names, and makes it tokens unless that was done before.

    Args:
      config: which data.
      cache: folder for tokens; nothing is written where the data are tokens already.
      say: told how far it is, every now and then.

    Raises:
      DataError: there is no such data, or some of it cannot be read, or one side has nothing.
    """
    if config.source == "synthetic":
        rng = np.random.default_rng(0)
        vocab = config.vocab_size or 256
        # A few ids are frequent and many rare, as in text.
        ids = np.minimum(rng.zipf(1.3, _SYNTHETIC) - 1, vocab - 1)
        tokens = Tokens(ids, np.array([len(ids)], np.uint64), vocab, f"synthetic-{vocab}")
        return _corpus(*_cut(tokens, config.held_out_fraction), None)
    if config.source == "tokens":
        tokens = _tokens(config, config.path)
        sides = _cut(tokens, config.held_out_fraction)
        if config.held_out is not None:
            sides = tokens, _tokens(config, config.held_out)
        return _corpus(*sides, None)
    return _tokenized(config, cache, say)


def is_held_out(place: str, fraction: float) -> bool:
    """Whether a document belongs to the held-out side: its place's hash falls into that fraction.

    >>> is_held_out("json/decoder.py", 0.05), is_held_out("json/decoder.py", 0.95)
    (False, True)
    """
    digest = hashlib.sha256(place.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < fraction


def _corpus(training: Tokens, held_out: Tokens, tokenizer: Tokenizer | None) -> Corpus:
    for name, side in (("to train on", training), ("held out", held_out)):
        if len(side.ids) < 2:
            raise DataError(
                f"data: {len(side.ids)} tokens {name}; expected at least 2. Use more text, or"
                " another data.held_out_fraction."
            )
    if held_out.vocab_size > training.vocab_size:
        raise DataError(
            f"data.held_out has ids below {held_out.vocab_size}, what is trained on below"
            f" {training.vocab_size}; expected the same."
        )
    named = "\0".join(
        [training.fingerprint, held_out.fingerprint, tokenizer.fingerprint if tokenizer else ""]
    )
    return Corpus(training, held_out, tokenizer, hashlib.sha256(named.encode()).hexdigest())


def _tokens(config: DataConfig, path: str | None) -> Tokens:
    if path is None:
        raise DataError("data.path: got null, expected a file or folder of tokens.")
    if Path(path).is_dir():
        return open_tokens(Path(path))
    if config.vocab_size is None:
        raise DataError(f"data.vocab_size: got null; {path} does not say below what its ids are.")
    return open_raw(Path(path), config.token_type, config.vocab_size)


def _cut(tokens: Tokens, fraction: float) -> tuple[Tokens, Tokens]:
    """The first documents and the last; of one alone, its beginning and its end."""
    count = len(tokens.ends)
    if count > 1:
        first = min(max(1, round(count * (1 - fraction))), count - 1)
        return part_of(tokens, 0, first), part_of(tokens, first, count)
    size = len(tokens.ids)
    place = round(size * (1 - fraction))
    side = lambda start, stop, name: tokens.part(
        start, stop, np.array([stop - start], np.uint64), name
    )
    return side(0, place, f":{place}"), side(place, size, f"{place}:")


def _documents(config: DataConfig, path: str | None) -> Documents:
    kind, pattern = cast(Kind, config.source), config.pattern
    if path is None:
        if kind != "text":
            raise DataError(f"data.path: got null, expected files of {kind}.")
        path, pattern = sysconfig.get_path("stdlib"), pattern or "*.py"
    return Documents(path, kind, pattern=pattern, field=config.field, skip_bad=config.skip_bad)


def _tokenized(config: DataConfig, cache: Path, say: Callable[[str], None]) -> Corpus:
    """From the cache, or first into it."""
    sources = [_documents(config, config.path)]
    if config.held_out is not None:
        sources.append(_documents(config, config.held_out))
    folder = cache / _key(config, sources)
    if not (folder / _DONE).is_file():
        _make(config, sources, folder, say)
    tokenizer = Bytes() if config.tokenizer == "bytes" else Subwords(folder / TOKENIZER_FILE)
    anew = f"Or delete {folder}: a run made these tokens, and the next start makes them again."
    training, held_out = (open_tokens(folder / name, anew) for name in ("training", "held_out"))
    return _corpus(training, held_out, tokenizer)


def _key(config: DataConfig, sources: list[Documents]) -> str:
    """A name for what these files give: another one when a file has changed."""
    files: list[Any] = []
    for documents in sources:
        for path in documents.files:
            below = sorted(path.rglob("*")) if path.is_dir() else [path]
            found = [(file, file.stat()) for file in below if file.is_file()]
            files += [(str(file), stat.st_size, stat.st_mtime_ns) for file, stat in found]
    tokenizer = config.tokenizer
    if tokenizer not in ("bytes", "train"):
        tokenizer = Subwords(tokenizer).fingerprint
    parts = (
        *(_VERSION, config.source, config.field, config.skip_bad, config.held_out_fraction),
        *(tokenizer, config.vocab_size, len(sources), files),
    )
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _make(
    config: DataConfig, sources: list[Documents], folder: Path, say: Callable[[str], None]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(config, sources, folder, say)
    writer = lambda name: TokenWriter(folder / name, tokenizer.vocab_size)
    with writer("training") as training, writer("held_out") as held_out:
        _encode(config, sources, tokenizer, training, held_out, say)
        if config.held_out is None and not (training.num_tokens and held_out.num_tokens):
            # Too few documents for a hash to share out.
            _share_out(config, training if training.num_tokens else held_out, training, held_out)
        else:
            training.close()
            held_out.close()
    skipped = [line for documents in sources for line in documents.skipped]
    for line in skipped:
        say(f"LEFT OUT: {line}")
    (folder / _DONE).write_text(json.dumps({"skipped": skipped}) + "\n", encoding="utf-8")


def _encode(
    config: DataConfig,
    sources: list[Documents],
    tokenizer: Tokenizer,
    training: TokenWriter,
    held_out: TokenWriter,
    say: Callable[[str], None],
) -> None:
    """All documents, each on its side."""
    began = time.monotonic()
    for documents, side in _sides(config, sources):
        ids = tokenizer.encode([document.text for document in documents])
        for document, one in zip(documents, ids, strict=True):
            if tokenizer.end is not None:
                one = np.append(one, tokenizer.end)
            (held_out if side(document) else training).add(one)
        if time.monotonic() - began > _SAY:
            say(f"tokens so far: {training.num_tokens + held_out.num_tokens:,}")
            began = time.monotonic()


def _share_out(config: DataConfig, whole: TokenWriter, *sides: TokenWriter) -> None:
    """The first and the last of all tokens."""
    tokens = whole.close()
    if len(tokens.ids) < 2:
        raise DataError(f"data: {len(tokens.ids)} tokens to train on; expected at least 2.")
    parts = [
        [np.array(part) for part in np.split(side.read(), side.ends[:-1].astype(np.int64))]
        for side in _cut(tokens, config.held_out_fraction)
    ]
    for side, documents in zip(sides, parts, strict=True):
        write_tokens(side.folder, documents, tokens.vocab_size)


def _sides(
    config: DataConfig, sources: list[Documents]
) -> Iterator[tuple[list[Document], Callable[[Document], bool]]]:
    """Documents, some at a time, and which of them are held out."""
    by_place = lambda document: is_held_out(document.place, config.held_out_fraction)
    tests = [lambda document: False, lambda document: True] if len(sources) > 1 else [by_place]
    for documents, side in zip(sources, tests, strict=True):
        for some in _some(documents):
            yield some, side


def _some(documents: Iterable[Document]) -> Iterator[list[Document]]:
    left = iter(documents)
    while some := list(itertools.islice(left, _AT_ONCE)):
        yield some


def _tokenizer(
    config: DataConfig, sources: list[Documents], folder: Path, say: Callable[[str], None]
) -> Tokenizer:
    """The tokenizer; beside the tokens lies a copy of it."""
    if config.tokenizer == "bytes":
        return Bytes()
    path = folder / TOKENIZER_FILE
    if config.tokenizer != "train":
        given = Path(config.tokenizer)
        given = given / TOKENIZER_FILE if given.is_dir() else given
        path.write_bytes(given.read_bytes())
        return Subwords(path)
    if config.vocab_size is None:
        raise DataError("data.vocab_size: got null, expected how many ids to learn.")
    say(f"learning {config.vocab_size:,} subwords")
    alone = len(sources) == 1
    texts = (
        document.text
        for document in sources[0]
        if not (alone and is_held_out(document.place, config.held_out_fraction))
    )
    return train_subwords(texts, config.vocab_size, path)
