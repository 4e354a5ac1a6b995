"""Tokenizers, tokens on disk, samples of them, batches of these."""

import itertools
import json
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpipe.data import (
    Batches,
    Bytes,
    Subwords,
    Tokens,
    TokenSamples,
    open_raw,
    open_tokens,
    spread,
    train_subwords,
    write_tokens,
)
from jaxpipe.data.samples import Packing
from jaxpipe.data.sums import BLOCK, BlockSums
from jaxpipe.data.tokens import part_of
from jaxpipe.errors import DataError

TEXT = "def add(one, other):\n    return one + other\n\n\ndef half(one):\n    return one / 2\n"


def tokens_of(*documents, vocab_size=256):
    ids = np.concatenate([np.asarray(d, np.uint8) for d in documents])
    return Tokens(ids, np.cumsum([len(d) for d in documents]).astype(np.uint64), vocab_size, "")


# Tokenizers


@given(st.text())
def test_bytes_come_back(text):
    [ids] = Bytes().encode([text])
    assert ids.max(initial=0) < Bytes.vocab_size
    assert Bytes().decode(ids.tolist()) == text


def test_half_of_a_pair_is_a_question_mark():
    [ids] = Bytes().encode([json.loads(r'"a\ud800b"')])
    assert Bytes().decode(ids.tolist()) == "a?b"


@pytest.fixture(scope="module")
def subwords(tmp_path_factory):
    return train_subwords([TEXT] * 20, 300, tmp_path_factory.mktemp("t") / "tokenizer.json")


def test_subwords_are_trained_written_and_read(subwords, tmp_path):
    assert 257 <= subwords.vocab_size <= 300 and subwords.end is not None
    one, other = subwords.encode([TEXT, "naïve ☃"])
    assert len(one) < len(TEXT.encode()) and max(one) < subwords.vocab_size
    assert subwords.decode(one.tolist()) == TEXT
    assert subwords.decode(other.tolist()) == "naïve ☃"  # never seen: byte by byte
    again = train_subwords([TEXT] * 20, 300, tmp_path / "tokenizer.json")
    assert again.fingerprint == subwords.fingerprint
    assert Subwords(tmp_path).fingerprint == subwords.fingerprint  # by its folder
    assert train_subwords([TEXT], 280, tmp_path / "x.json").fingerprint != subwords.fingerprint


def test_tokenizers_that_cannot_be_are_refused(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(DataError, match=r"no tokenizer\.json"):
        Subwords(tmp_path / "x.json")
    with pytest.raises(DataError, match="does not exist"):
        Subwords(tmp_path / "none.json")
    with pytest.raises(DataError, match="at least 257"):
        train_subwords([TEXT], 256, tmp_path / "y.json")


def test_without_the_package_tokenizers_it_is_said_what_to_install(tmp_path, monkeypatch):
    train_subwords([TEXT], 260, tmp_path / "x.json")
    monkeypatch.setitem(sys.modules, "tokenizers", None)  # importing it fails
    said = r"tokenizers is not installed, and these data need it: pip install 'jaxpipe\[data\]'"
    with pytest.raises(DataError, match=said):
        Subwords(tmp_path / "x.json")
    with pytest.raises(DataError, match=said):
        train_subwords([TEXT], 260, tmp_path / "y.json")


# Tokens on disk


@pytest.mark.parametrize(("vocab", "dtype"), [(256, "uint8"), (257, "uint16"), (70_000, "uint32")])
def test_tokens_are_written_and_mapped(tmp_path, vocab, dtype):
    documents = [np.array([0, 1, vocab - 1]), np.array([], int), np.array([5])]
    write_tokens(tmp_path / "t", documents[:1], vocab)
    tokens = write_tokens(tmp_path / "t", documents, vocab)  # what is there is replaced
    assert tokens.ids.dtype == dtype and isinstance(tokens.ids, np.memmap)
    assert tokens.ids.tolist() == [0, 1, vocab - 1, 5] and tokens.ends.tolist() == [3, 3, 4]
    again = open_tokens(tmp_path / "t")
    assert again.fingerprint == tokens.fingerprint and again.vocab_size == vocab
    other = write_tokens(tmp_path / "u", documents[::-1], vocab)
    assert other.fingerprint != tokens.fingerprint
    assert [path.name for path in tmp_path.iterdir() if "making" in path.name] == []


def test_tokens_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"document 1 has ids from 0 to 9; expected 0 to 8"):
        write_tokens(tmp_path / "t", [np.array([1]), np.array([0, 9])], 9)
    with pytest.raises(DataError, match="no tokens at all"):
        write_tokens(tmp_path / "t", [], 9)
    with pytest.raises(DataError, match="no folder of tokens"):
        open_tokens(tmp_path / "t")
    write_tokens(tmp_path / "t", [np.arange(9)], 9)
    (tmp_path / "t" / "tokens.bin").write_bytes(b"123")
    with pytest.raises(DataError, match=r"has 3 bytes, expected 9: it was cut"):
        open_tokens(tmp_path / "t")


@pytest.mark.parametrize("name", ["tokens.bin", "sums.bin", "ends.bin"])
def test_a_flipped_byte_of_tokens_is_found(tmp_path, name):
    write_tokens(tmp_path / "t", [np.arange(i + 1) % 9 for i in range(20)], 9)
    path = tmp_path / "t" / name
    whole = path.read_bytes()
    for place in range(0, len(whole), 13):
        bad = bytearray(whole)
        bad[place] ^= 1
        path.write_bytes(bad)
        with pytest.raises(DataError, match=rf"{name} is not as it was written.* got CRC-32"):
            open_tokens(tmp_path / "t").read()
    path.write_bytes(whole)
    assert open_tokens(tmp_path / "t").read().size == 210


def test_blocks_are_checked_when_they_are_read_and_no_others(tmp_path, monkeypatch):
    for place in ("sums", "tokens"):
        monkeypatch.setattr(f"jaxpipe.data.{place}.BLOCK", 16)
    documents = [np.arange(size) for size in (10, 0, 30, 31)]
    write_tokens(tmp_path / "t", documents, 500)  # 142 bytes
    data = bytearray((tmp_path / "t" / "tokens.bin").read_bytes())
    assert len((tmp_path / "t" / "sums.bin").read_bytes()) == 4 * 9
    data[50] ^= 1  # in block 3: tokens 24 to 31
    (tmp_path / "t" / "tokens.bin").write_bytes(data)
    tokens = open_tokens(tmp_path / "t")
    stream = np.concatenate(documents)
    said = r"tokens\.bin is not as it was written, somewhere in bytes 48 to 64: got CRC-32"
    for start, stop in ((0, 24), (5, 7), (9, 9), (32, 71), (70, 71)):
        np.testing.assert_array_equal(tokens.read(start, stop), stream[start:stop])
    for start, stop in ((0, None), (24, 25), (23, 33), (31, 32)):
        with pytest.raises(DataError, match=said):
            tokens.read(start, stop)
    # So it is with parts: these begin with tokens 10 and 40.
    part = part_of(tokens, 2, 3)
    assert part.read(22).tolist() == list(range(22, 30))
    with pytest.raises(DataError, match=said):
        part.read(20, 22)
    assert part_of(part_of(tokens, 1, 4), 2, 3).read().tolist() == list(range(31))
    # And with samples.
    samples = TokenSamples(tokens, 8)
    assert samples[5]["inputs"].tolist() == stream[40:48].tolist()
    with pytest.raises(DataError, match=said):
        samples[2]


@given(st.lists(st.binary(max_size=200_000), max_size=4))
def test_sums_do_not_depend_on_how_bytes_come(pieces):
    sums, whole = BlockSums(), b"".join(pieces)
    for piece in pieces:
        sums.add(piece)
    blocks = [whole[start : start + BLOCK] for start in range(0, len(whole), BLOCK)]
    assert sums.close().tolist() == [zlib.crc32(block) for block in blocks]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda index: [], "got version None, expected 2"),
        (lambda index: index | {"version": 1}, "got version 1, expected 2"),
        (lambda index: index | {"dtype": "object"}, "not as write_tokens writes it"),
        (lambda index: index | {"num_tokens": None}, "not as write_tokens writes it"),
        (lambda index: index | {"crc32": {}}, "not as write_tokens writes it"),
        (lambda index: index | {"dtype": "uint16", "num_tokens": -1}, "it was cut, or"),
    ],
)
def test_an_index_of_tokens_that_says_something_else_is_refused(tmp_path, change, said):
    write_tokens(tmp_path / "t", [np.arange(9)], 9)
    path = tmp_path / "t" / "tokens.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(DataError, match=said):
        open_tokens(tmp_path / "t")


def test_raw_files_are_mapped_and_checked(tmp_path):
    ids = np.array([7, 3, 0, 5, 0, 65535], np.uint16)
    ids.tofile(tmp_path / "x.bin")
    np.save(tmp_path / "x.npy", ids)
    for name in ("x.bin", "x.npy"):
        tokens = open_raw(tmp_path / name, "uint16", 65536, end=0)
        assert tokens.ids.tolist() == ids.tolist()  # 65535 too
        assert tokens.ends.tolist() == [3, 5, 6]
    assert open_raw(tmp_path / "x.bin", "uint16", 65536).ends.tolist() == [6]
    with pytest.raises(DataError, match=r"x\.bin: token 5 has id 65535; expected 0 to 65534"):
        open_raw(tmp_path / "x.bin", "uint16", 65535)
    with pytest.raises(DataError, match="no multiple of 8"):
        open_raw(tmp_path / "x.bin", "uint64", 65536)
    np.save(tmp_path / "y.npy", np.array([1, -1]))
    with pytest.raises(DataError, match="token 1 has id -1"):
        open_raw(tmp_path / "y.npy", "int64", 9)
    for bad in (np.ones(3), np.ones((2, 2), int), np.array([], int)):
        np.save(tmp_path / "z.npy", bad)
        with pytest.raises(DataError, match="expected integers"):
            open_raw(tmp_path / "z.npy", "uint16", 9)
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-1])
    with pytest.raises(DataError, match=r"x\.npy is no \.npy that can be read"):
        open_raw(tmp_path / "x.npy", "uint16", 65536)


def test_a_part_of_tokens_is_documents():
    tokens = tokens_of([1, 2], [3], [4, 5, 6])
    part = part_of(tokens, 1, 3)
    assert part.ids.tolist() == [3, 4, 5, 6] and part.ends.tolist() == [1, 4]
    assert len({tokens.fingerprint, part.fingerprint, part_of(tokens, 0, 2).fingerprint}) == 3


# Samples

some_documents = st.lists(st.lists(st.integers(0, 255), max_size=9), min_size=1, max_size=9)


@given(some_documents, st.integers(1, 7), st.sampled_from(["stream", "packed", "padded"]))
@settings(max_examples=300)
def test_every_token_that_can_be_predicted_is_a_target_once(documents, length, packing: Packing):
    tokens = tokens_of(*documents)
    stream = list(itertools.chain(*documents))
    bounds = tokens.ends.tolist()
    # What is to be predicted from what, in order.
    pairs = [
        (stream[i], stream[i + 1])
        for i in range(len(stream) - 1)
        if packing == "stream" or i + 1 not in bounds
    ]
    try:
        samples = TokenSamples(tokens, length, packing)
    except DataError:
        assert not pairs
        return
    found = []
    for i in range(len(samples)):
        sample = samples[i]
        assert all(field.shape == (length,) for field in sample.values())
        counts = sample["weights"] > 0
        found += zip(sample["inputs"][counts], sample["targets"][counts], strict=True)
    assert found == pairs
    with pytest.raises(IndexError):
        samples[len(samples)]


@given(some_documents, st.integers(1, 7))
def test_segments_are_documents(documents, length):
    tokens = tokens_of(*documents)
    if len(tokens.ids) < 2:
        return
    owner = np.repeat(np.arange(len(documents)), [len(d) for d in documents])
    samples = TokenSamples(tokens, length, "packed")
    for i in range(len(samples)):
        segments = samples[i]["segment_ids"]
        real = owner[i * length : i * length + length][: len(tokens.ids) - 1 - i * length]
        own = segments[: len(real)]
        np.testing.assert_array_equal(own[:, None] == own, real[:, None] == real)
        assert not set(segments[len(real) :]) & set(own)  # what is empty is seen by none


# Batches


class Numbers:
    def __len__(self):
        return 7

    def __getitem__(self, i):
        return {"inputs": np.array([i]), "weights": np.float32(1)}


def shown(batch):
    return batch["inputs"].ravel().tolist()


def test_batches_use_every_sample_once_in_each_round():
    batches = Batches(Numbers(), 2, seed=3)
    stream = [i for number in range(1, 15) for i in shown(batches[number])]
    rounds = [stream[i : i + 7] for i in range(0, 28, 7)]
    assert all(sorted(one) == list(range(7)) for one in rounds)
    assert len(set(map(tuple, rounds))) > 1
    assert batches.epoch(1) == 0 and batches.epoch(8) == 2
    plain = Batches(Numbers(), 2, seed=3, shuffle=False)
    assert [shown(plain[n]) for n in (1, 4)] == [[0, 1], [6, 0]]


def test_fewer_samples_than_a_batch_fill_it_round_after_round():
    batches = Batches(Numbers(), 10, seed=3)
    stream = [i for number in range(1, 8) for i in shown(batches[number])]
    assert len(stream) == 70  # whole batches, whatever there is
    rounds = [stream[i : i + 7] for i in range(0, 70, 7)]
    assert all(sorted(one) == list(range(7)) for one in rounds)
    assert len(set(map(tuple, rounds))) > 1
    found = batches.starting_at(3)
    assert [shown(next(found)) for _ in range(2)] == [stream[20:30], stream[30:40]]
    assert batches.epoch(8) == 10


def test_batches_can_be_entered_anywhere_by_any_number_of_processes():
    batches = Batches(Numbers(), 4, seed=3)
    whole = [shown(batches[number]) for number in range(1, 20)]
    for start in (1, 6, 19):
        found = batches.starting_at(start)
        assert [shown(next(found)) for _ in range(20 - start)] == whole[start - 1 :]
    for parts in (1, 2, 4):
        size = 4 // parts
        own = [
            Batches(Numbers(), 4, seed=3, rows=slice(i * size, (i + 1) * size))
            for i in range(parts)
        ]
        for number, want in enumerate(whole, 1):
            assert [i for one in own for i in shown(one[number])] == want
    assert [shown(Batches(Numbers(), 4, seed=4)[n]) for n in range(1, 20)] != whole


def test_batches_that_cannot_be_are_refused():
    with pytest.raises(DataError, match="no samples"):
        Batches([], 2, seed=0)
    with pytest.raises(DataError, match="batch_size=0"):
        Batches(Numbers(), 0, seed=0)
    with pytest.raises(DataError, match="batch 0"):
        Batches(Numbers(), 2, seed=0)[0]


def test_samples_lie_evenly_among_all():
    batches = spread(Numbers(), 2, 2)
    assert [shown(batch) for batch in batches] == [[0, 2], [4, 6]]
    assert [shown(batch) for batch in spread(Numbers(), 1, 7)] == [list(range(7))]


def test_where_there_are_few_samples_each_counts_once():
    batches = spread(Numbers(), 100, 4)
    assert [shown(batch) for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 0]]
    assert batches[1]["weights"].tolist() == [1, 1, 1, 0]
