"""The corpus and its split, the windows, and the bigram baseline."""

import hashlib
import itertools
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxpipe.data import fit_bigram, held_out_batches, read_corpus, training_batch
from jaxpipe.data.corpus import is_held_out, source_files
from jaxpipe.errors import ConfigError

TEXT = np.arange(1000, dtype=np.int64).astype(np.uint8)


def write(root, names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {name}\n")


def test_only_python_files_of_the_library_itself_are_read(tmp_path):
    ours = ["b.py", "a/z.py", "a/b/c.py", "é.py"]
    write(tmp_path, [*ours, "site-packages/x.py", "a/dist-packages/y.py", "a/b.txt", "c.pyc"])
    (tmp_path / "folder.py").mkdir()
    assert source_files(tmp_path) == ["a/b/c.py", "a/z.py", "b.py", "é.py"]


def test_the_two_sides_hold_every_byte_once_in_the_order_of_names(tmp_path):
    names = [f"m{i:03}.py" for i in range(200)]
    write(tmp_path, names)
    corpus = read_corpus(tmp_path, 0.3)
    sides = {side: [n for n in names if is_held_out(n, 0.3) == side] for side in (False, True)}
    assert corpus.training.tobytes().decode() == "".join(f"# {n}\n" for n in sides[False])
    assert corpus.held_out.tobytes().decode() == "".join(f"# {n}\n" for n in sides[True])
    assert corpus.num_files == 200
    assert 40 <= len(sides[True]) <= 80  # 60 expected, 6.5 the standard deviation


def test_a_file_stays_on_its_side_when_others_come(tmp_path):
    write(tmp_path, [f"m{i}.py" for i in range(40)])
    before = read_corpus(tmp_path, 0.3)
    write(tmp_path, ["m99.py", "z.py"])
    after = read_corpus(tmp_path, 0.3)
    for side in ("training", "held_out"):
        lines = [set(getattr(c, side).tobytes().splitlines()) for c in (before, after)]
        assert lines[0] <= lines[1]
    assert before.fingerprint != after.fingerprint


def test_the_split_is_the_hash_of_the_name():
    digest = hashlib.sha256(b"json/decoder.py").digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    assert is_held_out("json/decoder.py", share + 1e-9)
    assert not is_held_out("json/decoder.py", share - 1e-9)


def test_the_default_is_the_library_of_this_python():
    names = source_files(Path(sysconfig.get_path("stdlib")))
    assert "json/decoder.py" in names
    assert not [name for name in names if "site-packages" in name.split("/")]


def test_folders_without_enough_text_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="is no folder"):
        read_corpus(tmp_path / "none")
    write(tmp_path, ["one.py"])
    with pytest.raises(ConfigError, match=r"1 \*.py files"):
        read_corpus(tmp_path)


@given(st.integers(0, 2**32 - 1), st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 999))
def test_a_batch_is_a_function_of_seed_and_step(seed, step, batch_size, length):
    one = training_batch(TEXT, seed, step, batch_size, length)
    two = training_batch(TEXT.copy(), seed, step, batch_size, length)
    for name in ("inputs", "targets"):
        assert one[name].shape == (batch_size, length)
        assert one[name].dtype == np.int32
        np.testing.assert_array_equal(one[name], two[name])
    # In this text each byte is its place modulo 256.
    np.testing.assert_array_equal(one["targets"], (one["inputs"] + 1) % 256)
    np.testing.assert_array_equal(one["inputs"][:, 1:], one["targets"][:, :-1])


def test_other_seeds_and_other_steps_give_other_windows():
    text = np.arange(2**16, dtype=np.uint16)  # a window tells where it starts
    starts = {
        (seed, step): tuple(training_batch(text, seed, step, 8, 4)["inputs"][:, 0].tolist())
        for seed in range(10)
        for step in range(10)
    }
    assert len(set(starts.values())) == 100


def test_windows_reach_the_first_and_the_last_byte():
    text = np.arange(10, dtype=np.uint8)
    rows = [training_batch(text, 0, step, 4, 7) for step in range(20)]
    assert min(row["inputs"].min() for row in rows) == 0
    assert max(row["targets"].max() for row in rows) == 9


def test_held_out_windows_are_spread_evenly_over_the_text():
    text = np.arange(1001, dtype=np.uint16)
    batches = held_out_batches(text, num_batches=5, batch_size=2, length=100)
    starts = np.concatenate([batch["inputs"][:, 0] for batch in batches])
    assert starts.tolist() == [0, 100, 200, 300, 400, 500, 600, 700, 800, 900]
    assert batches[-1]["targets"][-1, -1] == 1000
    assert batches[0]["inputs"].dtype == np.int32


@pytest.mark.parametrize("length", [10, 11])
def test_text_shorter_than_a_window_is_refused(length):
    text = np.zeros(10, np.uint8)
    with pytest.raises(ConfigError, match="only 10 bytes"):
        training_batch(text, 0, 1, 1, length)
    with pytest.raises(ConfigError, match="only 10 bytes"):
        held_out_batches(text, 1, 1, length)


@given(st.binary(min_size=2, max_size=50), st.floats(1e-3, 10))
def test_the_bigram_model_is_a_distribution_for_every_byte(text, alpha):
    probabilities = np.exp(fit_bigram(np.frombuffer(text, np.uint8), alpha).log_probabilities)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-12)
    row, pairs = text[0], list(itertools.pairwise(text))
    expected = (pairs.count((row, text[1])) + alpha) / (text[:-1].count(row) + 256 * alpha)
    np.testing.assert_allclose(probabilities[row, text[1]], expected, rtol=1e-12)


def test_the_bigram_loss_is_the_mean_over_positions():
    bigram = fit_bigram(np.frombuffer(b"abacabad", np.uint8), alpha=0.5)
    batches = [
        {"inputs": np.array([[97, 98]]), "targets": np.array([[98, 97]])},
        {"inputs": np.array([[99]]), "targets": np.array([[100]])},
    ]
    likelihoods = [2.5 / 132, 2.5 / 130, 0.5 / 129]  # ab twice of 4 a, ba twice of 2 b, no cd
    np.testing.assert_allclose(bigram.cross_entropy(batches), -np.mean(np.log(likelihoods)))


def test_rows_of_a_batch_are_the_same_whoever_makes_them():
    text = np.arange(200, dtype=np.uint8)
    whole = training_batch(text, 3, 7, batch_size=6, length=5)
    parts = [training_batch(text, 3, 7, 6, 5, rows=slice(i, i + 2)) for i in (0, 2, 4)]
    for name, field in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), field)
