"""Documents from real files of every kind, sound and not."""

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


@pytest.mark.parametrize("kind", ["parquet", "arrayrecord"])
def test_files_that_are_cut_are_found(tmp_path, kind):
    folder = written(tmp_path / "x", kind, [f"{i} " * 500 for i in range(40)])
    [first, *_] = sorted(folder.iterdir())
    first.write_bytes(first.read_bytes()[: first.stat().st_size // 2])
    assert first.name in problem(Documents(folder, kind))


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
