"""Documents from real files of every kind, sound and not."""

import sys

import numpy as np
import pytest
from some_files import TEXTS, written

from jaxpipe.data import Document, Documents
from jaxpipe.data.documents import KINDS
from jaxpipe.errors import DataError


def texts_of(documents):
    return [document.text for document in documents]


def problem(documents) -> str:
    with pytest.raises(DataError) as caught:
        list(documents)
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_is_read(tmp_path, kind):
    documents = Documents(written(tmp_path / "x", kind), kind)
    assert texts_of(documents) == TEXTS
    assert texts_of(documents) == TEXTS  # again, from the beginning
    places = [document.place for document in documents]
    assert len(set(places)) == 4 and not any(str(tmp_path) in place for place in places)


def test_a_file_is_read_by_itself(tmp_path):
    folder = written(tmp_path / "x", "jsonl")
    found = list(Documents(folder / "1.jsonl", "jsonl"))
    assert found == [Document("", "1.jsonl:1"), Document(TEXTS[3], "1.jsonl:2")]


def test_patterns_choose_files_and_packages_are_no_text(tmp_path):
    for name in ("a.py", "b.txt", "sub/c.py", "site-packages/d.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert texts_of(Documents(tmp_path, "text", pattern="*.py")) == ["a.py", "sub/c.py"]


def test_bytes_that_are_no_text_are_kept(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"\xff\x00a")
    [document] = Documents(tmp_path, "text")
    assert document.text.encode("utf-8", "surrogateescape") == b"\xff\x00a"


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "huggingface"])
def test_fields_have_names(tmp_path, kind):
    folder = written(tmp_path / "x", kind, field="content")
    assert texts_of(Documents(folder, kind, field="content")) == TEXTS
    assert "'text'" in problem(Documents(folder, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_there_is_said(tmp_path, kind):
    with pytest.raises(DataError, match="does not exist"):
        Documents(tmp_path / "none", kind)
    with pytest.raises(DataError, match=r"has no files|has no state\.json"):
        Documents(tmp_path, kind)


def test_bad_lines_are_named_and_a_few_may_be_left_out(tmp_path):
    lines = ['{"text": "good"}', "{", '{"text": 3}', '["text"]', '{"x": "y"}', '{"text": "too"}']
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    assert "x.jsonl:2" in problem(Documents(tmp_path, "jsonl"))
    message = problem(Documents(tmp_path, "jsonl", skip_bad=3))
    assert "x.jsonl:3: got int, expected text" in message
    assert "x.jsonl:4: got list, expected a row with 'text'" in message
    assert "x.jsonl:5: no 'text'" in message and "data.skip_bad, now 3" in message
    documents = Documents(tmp_path, "jsonl", skip_bad=4)
    assert texts_of(documents) == ["good", "too"]
    assert len(documents.skipped) == 4


def test_one_bad_row_or_record_is_one_document(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = written(tmp_path / "x", "parquet", ["a", "b", "c"])
    pq.write_table(pa.table({"text": pa.array(["d", None])}), folder / "2.parquet")
    offsets = np.array([0, 1, 2, 3], np.int32)
    rows = pa.StringArray.from_buffers(3, pa.py_buffer(offsets), pa.py_buffer(b"e\xfff"))
    pq.write_table(pa.table({"text": rows}), folder / "3.parquet")
    message = problem(Documents(folder, "parquet", skip_bad=1))
    assert "2.parquet:2: got NoneType, expected text" in message and "3.parquet:2: " in message
    assert texts_of(Documents(folder, "parquet", skip_bad=2)) == list("abcdef")

    texts = [np.random.default_rng(i).bytes(3000).hex() for i in range(40)]
    folder = written(tmp_path / "y", "arrayrecord", texts)
    [_, last] = sorted(folder.iterdir())
    data = bytearray(last.read_bytes())
    data[len(data) // 4] ^= 4
    last.write_bytes(data)
    documents = Documents(folder, "arrayrecord", skip_bad=1)
    found = texts_of(documents)
    assert len(found) == 39 and set(found) < set(texts)
    assert documents.skipped[0].startswith(f"{last.name}:")


ANY = 10**9  # documents that may be left out


@pytest.mark.parametrize("kind", ["parquet", "arrayrecord"])
def test_files_that_are_cut_are_found(tmp_path, kind):
    folder = written(tmp_path / "x", kind, [f"{i} " * 500 for i in range(40)])
    [first, *_] = sorted(folder.iterdir())
    first.write_bytes(first.read_bytes()[: first.stat().st_size // 2])
    for skip_bad in (0, ANY):
        assert f"{first} cannot be read" in problem(Documents(folder, kind, skip_bad=skip_bad))


def test_damage_in_the_middle_of_a_file_is_never_left_out(tmp_path):
    # Without these pages their rows cannot be told from one another: they are no single documents.
    texts = [" ".join(str(i * k) for k in range(300)) for i in range(40)]
    folder = written(tmp_path / "x", "parquet", texts)
    [_, last] = sorted(folder.iterdir())
    data = bytearray(last.read_bytes())
    data[len(data) // 3] ^= 4
    last.write_bytes(data)
    message = problem(Documents(folder, "parquet", skip_bad=ANY))
    assert f"{last} cannot be read after row 0: " in message
    assert "data.skip_bad counts single documents" in message


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_lost_is_never_left_out(tmp_path, kind):
    documents = Documents(written(tmp_path / "x", kind), kind, skip_bad=ANY)
    [*_, last] = sorted((tmp_path / "x").glob("*.arrow" if kind == "huggingface" else "*"))
    last.unlink()
    assert f"{last} cannot be read" in problem(documents)


@pytest.mark.parametrize("cut", [8, 100, 10_000, 30_000, None])
def test_arrow_files_that_are_cut_are_found(tmp_path, cut):
    folder = written(tmp_path / "x", "huggingface", [f"{i} " * 500 for i in range(40)])
    [path] = folder.glob("*.arrow")
    path.write_bytes(path.read_bytes()[: -cut if cut else 0])
    assert f"{path} cannot be read" in problem(Documents(folder, "huggingface", skip_bad=ANY))


def test_texts_beyond_an_arrow_files_end_are_found(tmp_path):
    texts = [f"{i} " * 50 for i in range(40)]
    folder = written(tmp_path / "x", "huggingface", texts)
    [path] = folder.glob("*.arrow")
    data = bytearray(path.read_bytes())
    offsets = np.cumsum([0, *map(len, texts)]).astype(np.int32).tobytes()
    data[data.index(offsets) + len(offsets) - 1] = 0x70  # where the last one ends
    path.write_bytes(data)
    assert f"{path} cannot be read" in problem(Documents(folder, "huggingface"))


@pytest.mark.parametrize("name", ["state.json", "dataset_info.json"])
def test_a_folder_that_is_described_no_more_is_refused(tmp_path, name):
    folder = written(tmp_path / "x", "huggingface")
    path = folder / name
    path.write_text(path.read_text()[:50])
    assert f"{path} cannot be read" in problem(Documents(folder, "huggingface"))


PACKAGES = {
    "parquet": "pyarrow",
    "arrayrecord": "array_record.python.array_record_module",
    "huggingface": "datasets",
}


@pytest.mark.parametrize("kind", PACKAGES)
def test_without_a_package_it_is_said_what_to_install(tmp_path, kind, monkeypatch):
    documents = Documents(written(tmp_path / "x", kind), kind)
    monkeypatch.setitem(sys.modules, PACKAGES[kind], None)  # importing it fails
    message = problem(documents)
    name = PACKAGES[kind].partition(".")[0]
    assert f"{name} is not installed, and these data need it" in message
    assert "pip install 'jaxpipe[data]'" in message


@pytest.mark.parametrize("kind", ["checked", "parquet", "huggingface"])
def test_a_flipped_bit_that_no_checksum_covers_is_not_found(tmp_path, kind):
    import pyarrow as pa
    import pyarrow.parquet as pq

    if kind == "huggingface":
        folder = written(tmp_path / "x", kind, ["some text"])
    else:
        folder = tmp_path / "x"
        folder.mkdir()
        pq.write_table(
            pa.table({"text": ["some text"]}),
            folder / "0.parquet",
            compression="NONE",
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=kind == "checked",
        )
    [path] = [*folder.glob("*.arrow"), *folder.glob("*.parquet")]
    path.write_bytes(path.read_bytes().replace(b"some text", b"some tent"))
    documents = Documents(folder, "huggingface" if kind == "huggingface" else "parquet")
    if kind == "checked":
        assert f"{path} cannot be read" in problem(documents)
    else:
        assert texts_of(documents) == ["some tent"]  # as docs/data.md warns


@pytest.mark.parametrize("kind", ["parquet", "arrayrecord"])
def test_a_flipped_bit_is_found(tmp_path, kind):
    texts = [" ".join(str(i * k) for k in range(300)) for i in range(40)]
    folder = written(tmp_path / "x", kind, texts)
    [first, *_] = sorted(folder.iterdir())
    data = bytearray(first.read_bytes())
    for place in range(len(data) // 4, len(data) * 3 // 4, max(1, len(data) // 37)):
        bad = bytearray(data)
        bad[place] ^= 4
        first.write_bytes(bad)
        try:
            assert texts_of(Documents(folder, kind)) == texts  # where nothing is stored
        except DataError as error:
            assert first.name in str(error)
