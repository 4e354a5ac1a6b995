"""Documents: texts one after another, from files of many kinds, with the places they come from."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxpipe.data.packages import needed
from jaxpipe.errors import DataError

Kind = Literal["text", "jsonl", "parquet", "arrayrecord", "huggingface"]

_NO_TEXT = frozenset({"site-packages", "dist-packages", "__pycache__", ".git"})
_ROWS = 4096  # of a Parquet file that are read at a time
_ARROW_END = b"\xff\xff\xff\xff\0\0\0\0"  # of a stream; without it whole batches may be missing


class Document(NamedTuple):
    """A text.

    Attributes:
      text: what it says.
      place: where it comes from, as in `"books.jsonl:12"`; the same on every machine.
    """

    text: str
    place: str


class Documents:
    """The texts of a file, or of the files of a folder, in one order everywhere.

    Args:
      path: the file or the folder.
      kind: what the files are:

        - `"text"`: a document each;
        - `"jsonl"`: a line of JSON for each document;
        - `"parquet"`, with a row for each;
        - `"arrayrecord"`, with a record of UTF-8 for each;
        - `"huggingface"`: a folder that `Dataset.save_to_disk` of Hugging Face's `datasets` wrote.
      pattern: of the names below a folder that count; by default by kind, as in `"*.jsonl"`.
      field: the key or the column that holds the text, where documents have several.
      skip_bad: how many single documents that cannot be read are left out; one more raises. A file
        that is damaged or lost always raises.

    Attributes:
      field: the key or the column that holds the text.
      skipped: the places of those that were left out by the last reading, and why.

    Raises:
      DataError: there are no such files.
    """

    def __init__(
        self,
        path: Path | str,
        kind: Kind,
        *,
        pattern: str | None = None,
        field: str = "text",
        skip_bad: int = 0,
    ) -> None:
        self._root, self._kind, self.field, self._skip_bad = Path(path), kind, field, skip_bad
        self._pattern = pattern or _PATTERNS[kind]
        self.skipped: list[str] = []
        self.files = self._found()

    def _found(self) -> list[Path]:
        if not self._root.exists():
            raise DataError(f"{self._root} does not exist; expected a file or a folder of text.")
        if self._kind == "huggingface":
            if not (self._root / "state.json").is_file():
                raise DataError(
                    f"{self._root} has no state.json; expected a folder that"
                    " datasets.Dataset.save_to_disk wrote (of a DatasetDict, one of its parts)."
                )
            return [self._root]
        if self._root.is_file():
            return [self._root]
        found = [
            path
            for path in self._root.rglob(self._pattern)
            if path.is_file() and _NO_TEXT.isdisjoint(path.relative_to(self._root).parts)
        ]
        if not found:
            raise DataError(f"{self._root} has no files {self._pattern}; expected some.")
        return sorted(found, key=lambda path: path.relative_to(self._root).as_posix())

    def __iter__(self) -> Iterator[Document]:
        self.skipped = []
        for path in self.files:
            name = path.name if path == self._root else path.relative_to(self._root).as_posix()
            yield from _READERS[self._kind](path, name, self)

    def take(self, place: str, make: Callable[[], Any]) -> Iterator[Document]:
        """A document that `make` reads, or none if that fails and may.

        Raises:
          DataError: it is no text, and enough were left out before.
        """
        try:
            text = make()
            if not isinstance(text, str):
                raise ValueError(f"got {type(text).__name__}, expected text")
        except (ValueError, KeyError, RecursionError) as error:
            why = f"no {self.field!r}" if isinstance(error, KeyError) else str(error)
            self.bad(place, why)
        else:
            yield Document(text, place)

    def bad(self, place: str, why: str) -> None:
        """Notes a document that cannot be read; raises if there were too many."""
        self.skipped.append(f"{place}: {why}")
        if len(self.skipped) > self._skip_bad:
            listed = "".join(f"\n  {line}" for line in self.skipped[-8:])
            raise DataError(
                f"documents that cannot be read:{listed}\nMend them, or let some be left out"
                f" (data.skip_bad, now {self._skip_bad})."
            )

    def of(self, row: Any) -> Any:
        """The text of a row."""
        if not isinstance(row, dict):
            raise ValueError(f"got {type(row).__name__}, expected a row with {self.field!r}")
        return row[self.field]


def _text(path: Path, name: str, documents: Documents) -> Iterator[Document]:
    del documents
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _damaged(path, error) from None
    # What is no UTF-8 stays as it is: bytes may be trained on.
    yield Document(data.decode("utf-8", "surrogateescape"), name)


def _json_lines(path: Path, name: str, documents: Documents) -> Iterator[Document]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield from documents.take(
                        f"{name}:{number}", lambda line=line: documents.of(json.loads(line))
                    )
    except OSError as error:
        raise _damaged(path, error) from None


def _parquet(path: Path, name: str, documents: Documents) -> Iterator[Document]:
    pyarrow, parquet = needed("pyarrow"), needed("pyarrow.parquet")
    number = 0
    try:
        file = parquet.ParquetFile(path, page_checksum_verification=True)
        if documents.field not in file.schema_arrow.names:
            raise DataError(
                f"{path} has no column {documents.field!r}; got {file.schema_arrow.names}. Say"
                " which holds the text (data.field)."
            )
        for batch in file.iter_batches(batch_size=_ROWS, columns=[documents.field]):
            for value in batch.column(0):
                number += 1
                yield from documents.take(f"{name}:{number}", value.as_py)
    except DataError:
        raise
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise _damaged(path, error, f" after row {number}") from None


def _array_record(path: Path, name: str, documents: Documents) -> Iterator[Document]:
    record = needed("array_record.python.array_record_module")
    try:
        size = path.stat().st_size
        reader = record.ArrayRecordReader(str(path))
        count = reader.num_records()
    except (ValueError, OSError, IndexError) as error:
        raise _damaged(path, error) from None
    if not count and size:  # a file that was cut has none, and says nothing
        raise _damaged(path, "it has no records, though it is not empty; it may have been cut")
    for number in range(count):
        try:
            data = reader.read([number])[0]
        except (ValueError, OSError, IndexError, RuntimeError) as error:
            documents.bad(f"{name}:{number + 1}", f"cannot be read: {error}")
            continue
        yield from documents.take(f"{name}:{number + 1}", lambda data=data: data.decode("utf-8"))
    reader.close()


def _huggingface(path: Path, name: str, documents: Documents) -> Iterator[Document]:
    datasets = needed("datasets")
    for file in _arrow_files(path):
        _check_arrow(file, documents.field)
    try:
        rows = datasets.load_from_disk(str(path), keep_in_memory=False)
    except Exception as error:  # whatever the libraries below it raise
        raise _damaged(path, error) from None
    if documents.field not in rows.column_names:
        raise DataError(
            f"{path} has no column {documents.field!r}; got {rows.column_names}. Say which holds"
            " the text (data.field)."
        )
    for number, row in enumerate(rows.select_columns([documents.field]), 1):
        yield from documents.take(f"{name}:{number}", lambda row=row: documents.of(row))


def _arrow_files(folder: Path) -> list[Path]:
    """The files of a folder of `datasets`, once those that describe it are whole."""
    path = folder
    try:
        for name in ("dataset_info.json", "state.json"):
            path = folder / name
            described = json.loads(path.read_text(encoding="utf-8"))
        return [folder / one["filename"] for one in described["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from None


def _check_arrow(path: Path, field: str) -> None:
    """Raises unless a file is whole: `datasets` map it, and would read beyond what is there."""
    pyarrow = needed("pyarrow")
    try:
        with pyarrow.memory_map(str(path)) as file, pyarrow.ipc.open_stream(file) as batches:
            for batch in batches:
                if field in batch.schema.names:
                    batch.column(field).validate(full=True)
            end = file.read_at(len(_ARROW_END), file.size() - len(_ARROW_END))
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise _damaged(path, error) from None
    if end != _ARROW_END:
        raise _damaged(path, "its end is missing; it was cut")


def _damaged(path: Path, why: object, place: str = "") -> DataError:
    return DataError(
        f"{path} cannot be read{place}: {why}. A file that is damaged or lost is never left out"
        " (data.skip_bad counts single documents). Copy it anew, or take it out of the data."
    )


_READERS: dict[str, Callable[[Path, str, Documents], Iterator[Document]]] = {
    "text": _text,
    "jsonl": _json_lines,
    "parquet": _parquet,
    "arrayrecord": _array_record,
    "huggingface": _huggingface,
}
_PATTERNS = {
    "text": "*.txt",
    "jsonl": "*.jsonl",
    "parquet": "*.parquet",
    "arrayrecord": "*.array_record*",
    "huggingface": "",
}
KINDS: Sequence[str] = tuple(_READERS)
