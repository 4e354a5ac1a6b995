"""The corpus: real files of every kind made tokens, split, found again; and the bigram baseline."""

import hashlib
import itertools
import os
import shutil
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from some_files import written

from jaxpipe.data import Bytes, DataConfig, fit_bigram, read_corpus, train_subwords, write_tokens
from jaxpipe.data import tokenizer as tokenizer_module
from jaxpipe.data.corpus import is_held_out
from jaxpipe.data.documents import KINDS
from jaxpipe.errors import DataError

TEXTS = [f"document {i} says {'la ' * (i % 7)}\n" for i in range(60)]


def a_corpus(tmp_path, say=lambda text: None, **settings: Any):
    settings = {"path": str(tmp_path / "x"), "held_out_fraction": 0.3} | settings
    return read_corpus(DataConfig(**settings), tmp_path / "cache", say)


def texts_of(tokens):
    parts = np.split(tokens.ids, tokens.ends[:-1].astype(int))
    return [Bytes().decode(part.tolist()) for part in parts]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_becomes_tokens(tmp_path, kind):
    written(tmp_path / "x", kind, TEXTS)
    corpus = a_corpus(tmp_path, source=kind)
    assert sorted(texts_of(corpus.training) + texts_of(corpus.held_out)) == sorted(TEXTS)
    assert 8 <= len(corpus.held_out.ends) <= 28  # 18 expected
    assert corpus.vocab_size == 256
    assert str(corpus).startswith("data: ")


def test_the_split_is_by_the_names_of_places(tmp_path):
    written(tmp_path / "x", "text", TEXTS)
    corpus = a_corpus(tmp_path)
    names = sorted(f"{i}.txt" for i in range(60))
    want = [TEXTS[int(name[:-4])] for name in names if is_held_out(name, 0.3)]
    assert texts_of(corpus.held_out) == want
    digest = hashlib.sha256(b"json/decoder.py").digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    assert is_held_out("json/decoder.py", share + 1e-9)
    assert not is_held_out("json/decoder.py", share - 1e-9)


def test_a_document_stays_on_its_side_when_others_come(tmp_path):
    written(tmp_path / "x", "text", TEXTS)
    before = a_corpus(tmp_path)
    (tmp_path / "x" / "more.txt").write_text("more")
    after = a_corpus(tmp_path)
    for old, new in zip(before[:2], after[:2], strict=True):
        assert set(texts_of(old)) <= set(texts_of(new))
    assert before.fingerprint != after.fingerprint


def test_tokens_are_made_once_and_again_when_a_file_changes(tmp_path):
    folder = written(tmp_path / "x", "jsonl", TEXTS)
    first = a_corpus(tmp_path, source="jsonl")
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.bin")}
    assert a_corpus(tmp_path, source="jsonl").fingerprint == first.fingerprint
    assert made == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.bin")}
    file = folder / "0.jsonl"
    file.write_text(file.read_text().replace("document 1", "Document 1"))
    os.utime(file, ns=(1, 1))
    assert a_corpus(tmp_path, source="jsonl").fingerprint != first.fingerprint


def test_damage_to_tokens_that_were_made_is_found_and_mended(tmp_path):
    written(tmp_path / "x", "text", TEXTS)
    first = a_corpus(tmp_path)
    [path] = (tmp_path / "cache").glob("*/training/tokens.bin")
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.unlink()  # not changed below the first corpus
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"training/tokens\.bin is not as it was") as caught:
        a_corpus(tmp_path).training.read()
    folder = path.parents[1]
    assert f"delete {folder}:" in str(caught.value)
    shutil.rmtree(folder)
    assert a_corpus(tmp_path).fingerprint == first.fingerprint


def test_what_is_evaluated_on_may_lie_elsewhere(tmp_path):
    written(tmp_path / "x", "text", TEXTS)
    written(tmp_path / "y", "text", ["other", "words"])
    corpus = a_corpus(tmp_path, held_out=str(tmp_path / "y"))
    assert len(corpus.training.ends) == 60
    assert texts_of(corpus.held_out) == ["other", "words"]


def test_one_document_alone_is_cut_in_two(tmp_path):
    (tmp_path / "x").write_text("abcdefghij" * 100)
    corpus = a_corpus(tmp_path, held_out_fraction=0.2)
    assert len(corpus.training.ids) == 800
    assert texts_of(corpus.training) + texts_of(corpus.held_out) == [
        "abcdefghij" * k for k in (80, 20)
    ]


def test_a_tokenizer_is_learnt_from_what_is_trained_on(tmp_path):
    written(tmp_path / "x", "text", TEXTS)
    said = []
    corpus = a_corpus(tmp_path, said.append, tokenizer="train", vocab_size=300)
    assert "learning 300 subwords" in said
    assert corpus.tokenizer is not None and 257 <= corpus.vocab_size <= 300
    end = corpus.tokenizer.end
    ends = corpus.training.ends.astype(int) - 1
    assert set(corpus.training.ids[ends].tolist()) == {end}  # each document has its end
    parts = np.split(corpus.training.ids, corpus.training.ends[:-1].astype(int))
    assert set(map(corpus.tokenizer.decode, map(np.ndarray.tolist, parts))) <= set(TEXTS)
    assert len(corpus.training.ids) < sum(map(len, TEXTS)) / 2
    again = a_corpus(tmp_path, tokenizer="train", vocab_size=300)
    assert again.fingerprint == corpus.fingerprint

    path = tmp_path / "given" / "tokenizer.json"
    given = train_subwords(["la la"], 260, path)
    for name in (path, path.parent):
        other = a_corpus(tmp_path, tokenizer=str(name))
        assert other.vocab_size == given.vocab_size
    path.write_text(path.read_text().replace("<|endoftext|>", "</s>"))
    assert a_corpus(tmp_path, tokenizer=str(path)).fingerprint != other.fingerprint


def test_what_cannot_be_read_is_left_out_aloud(tmp_path):
    lines = ['{"text": "%s"}' % ("good " * i) for i in range(1, 20)]
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.jsonl").write_text("\n".join([*lines, "{"]))
    with pytest.raises(DataError, match=r"a\.jsonl:20"):
        a_corpus(tmp_path, source="jsonl")
    said = []
    a_corpus(tmp_path, said.append, source="jsonl", skip_bad=1)
    assert [line for line in said if line.startswith("LEFT OUT: a.jsonl:20")]


@pytest.mark.parametrize(
    ("settings", "field", "package"),
    [
        ({"source": "parquet"}, "data.source: got 'parquet'", "pyarrow"),
        ({"source": "arrayrecord"}, "data.source: got 'arrayrecord'", "array_record"),
        ({"source": "huggingface"}, "data.source: got 'huggingface'", "datasets"),
        ({"tokenizer": "train", "vocab_size": 300}, "data.tokenizer: got 'train'", "tokenizers"),
        ({"tokenizer": "x.json"}, "data.tokenizer: got 'x.json'", "tokenizers"),
    ],
)
def test_packages_that_data_need_are_missed_before_anything_starts(
    settings, field, package, monkeypatch
):
    config = DataConfig(**({"path": "x"} | settings))
    assert list(config.problems()) == []
    monkeypatch.setitem(sys.modules, package, None)  # importing it fails
    [problem] = config.problems()
    assert problem == (
        f"{field}, and the package {package} is not installed; pip install 'jaxpipe[data]'."
    )
    assert list(DataConfig().problems()) == []
    assert list(DataConfig(path="x", source="tokens", tokenizer="x.json").problems()) == []


def test_tokens_need_no_cache(tmp_path):
    documents = [np.full(5, i) for i in range(10)]
    write_tokens(tmp_path / "x", documents, 300)
    corpus = a_corpus(tmp_path, source="tokens")
    assert (len(corpus.training.ends), len(corpus.held_out.ends)) == (7, 3)
    assert corpus.vocab_size == 300 and corpus.tokenizer is None
    np.arange(1000, dtype=np.uint16).tofile(tmp_path / "raw")
    corpus = a_corpus(tmp_path, source="tokens", path=str(tmp_path / "raw"), vocab_size=1000)
    assert (len(corpus.training.ids), len(corpus.held_out.ids)) == (700, 300)
    assert not (tmp_path / "cache").exists()
    with pytest.raises(DataError, match=r"data\.vocab_size: got null"):
        a_corpus(tmp_path, source="tokens", path=str(tmp_path / "raw"))
    assert a_corpus(tmp_path, source="synthetic", vocab_size=77).training.ids.max() == 76


def test_too_little_is_refused(tmp_path):
    written(tmp_path / "x", "text", ["", ""])
    with pytest.raises(DataError, match="tokens to train on; expected at least 2"):
        a_corpus(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        a_corpus(tmp_path, path=str(tmp_path / "none"))


def test_the_default_is_the_library_of_this_python(tmp_path, monkeypatch):
    seen = []
    encode = tokenizer_module.Bytes.encode
    monkeypatch.setattr(
        tokenizer_module.Bytes,
        "encode",
        lambda self, texts: seen.extend(texts) or encode(self, [text[:9] for text in texts]),
    )
    corpus = a_corpus(tmp_path, path=None)
    assert len(corpus.training.ends) > 500
    assert any("class JSONDecoder" in text for text in seen)


@given(st.binary(min_size=2, max_size=50), st.floats(1e-3, 10))
def test_the_bigram_model_is_a_distribution_for_every_byte(text, alpha):
    probabilities = np.exp(fit_bigram(np.frombuffer(text, np.uint8), alpha).log_probabilities)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-12)
    row, pairs = text[0], list(itertools.pairwise(text))
    expected = (pairs.count((row, text[1])) + alpha) / (text[:-1].count(row) + 256 * alpha)
    np.testing.assert_allclose(probabilities[row, text[1]], expected, rtol=1e-12)


def test_the_bigram_loss_is_the_mean_over_what_counts():
    bigram = fit_bigram(np.frombuffer(b"abacabad", np.uint8), alpha=0.5)
    batch = lambda inputs, targets, weights: {
        "inputs": np.array([inputs]), "targets": np.array([targets]), "weights": np.array([weights])
    }  # fmt: skip
    batches = [batch([97, 98, 0], [98, 97, 0], [1, 1, 0]), batch([99], [100], [1])]
    likelihoods = [2.5 / 132, 2.5 / 130, 0.5 / 129]  # ab twice of 4 a, ba twice of 2 b, no cd
    np.testing.assert_allclose(bigram.cross_entropy(batches), -np.mean(np.log(likelihoods)))
