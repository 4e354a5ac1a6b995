"""Real files of every kind of source, for tests of data."""

import importlib
import json
from collections.abc import Sequence
from pathlib import Path

TEXTS = ["First, ünïcode.\n", "second", "", "the fourth\nhas two lines"]


def written(
    folder: Path, kind: str, texts: Sequence[str] | None = None, field: str = "text"
) -> Path:
    """Real files of a kind, two where a kind has several."""
    texts = TEXTS if texts is None else texts
    folder.mkdir(exist_ok=True)
    halves = [texts[:2], texts[2:]]
    rows = [[{field: text, "n": i} for i, text in enumerate(half)] for half in halves]
    if kind == "text":
        for i, text in enumerate(texts):
            (folder / f"{i}.txt").write_text(text)
    elif kind == "jsonl":
        for i, half in enumerate(rows):
            (folder / f"{i}.jsonl").write_text("\n".join(map(json.dumps, half)) + "\n\n")
    elif kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        for i, half in enumerate(rows):
            pq.write_table(
                pa.Table.from_pylist(half), folder / f"{i}.parquet", write_page_checksum=True
            )
    elif kind == "arrayrecord":
        array_record_module = importlib.import_module("array_record.python.array_record_module")
        for i, half in enumerate(halves):
            writer = array_record_module.ArrayRecordWriter(str(folder / f"{i}.array_record"), "")
            for text in half:
                writer.write(text.encode())
            writer.close()
    else:
        import datasets

        datasets.Dataset.from_list([row for half in rows for row in half]).save_to_disk(str(folder))
    return folder
