"""Arrays as a source of samples: what is read, what is refused, and where it is wrong."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpipe.data import Arrays, Batches, read_arrays, spread
from jaxpipe.errors import DataError

rng = np.random.default_rng(0)
IMAGES = rng.normal(size=(40, 3, 4))  # float64
CLASSES = (np.arange(40) % 7).astype(np.uint8)


def written(path: Path, **fields: Any) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **fields)
    else:
        path.mkdir()
        for name, values in fields.items():
            np.save(path / f"{name}.npy", values)
    return path


def numbers_of(arrays: Arrays) -> list[list[float]]:
    return [sorted(float(s["inputs"][0, 0]) for s in side) for side in arrays[:2]]  # pyright: ignore


@pytest.mark.parametrize("name", ["arrays.npz", "folder"])
def test_each_sample_is_on_one_side(tmp_path, name):
    arrays = read_arrays(written(tmp_path / name, inputs=IMAGES, targets=CLASSES), fraction=0.3)
    training, held_out = numbers_of(arrays)
    assert sorted(training + held_out) == sorted(IMAGES[:, 0, 0].astype(np.float32).tolist())
    assert 4 <= len(held_out) <= 20 and arrays.num_classes == 7
    sample = arrays.training[0]
    assert {name: (x.dtype, x.shape) for name, x in sample.items()} == {
        "inputs": (np.float32, (3, 4)), "targets": (np.int32, ()), "weights": (np.float32, ()),
    }  # fmt: skip
    assert str(arrays).startswith(f"data: {len(training)} samples [3, 4] to train on, ")
    batch = Batches(arrays.training, 5, seed=1)[3]
    assert batch["inputs"].shape == (5, 3, 4) and batch["targets"].shape == (5,)


def test_the_fingerprint_is_that_of_the_numbers(tmp_path):
    made = lambda name, fraction=0.3, **fields: (
        read_arrays(
            written(tmp_path / name, **dict(inputs=IMAGES, targets=CLASSES) | fields),
            fraction=fraction,
        ).fingerprint
    )
    first = made("a.npz")
    assert made("b") == first == made("c.npz", targets=CLASSES.astype(np.int64))
    other = IMAGES.copy()
    other[39, 2, 3] += 1
    assert len({first, made("d.npz", inputs=other), made("e.npz", 0.31)}) == 3


def test_held_out_samples_may_have_a_place_of_their_own(tmp_path):
    path = written(tmp_path / "a.npz", inputs=IMAGES, targets=CLASSES)
    held_out = written(tmp_path / "b", inputs=IMAGES[:6], targets=np.full(6, 9))
    arrays = read_arrays(path, held_out)
    assert (len(arrays.training), len(arrays.held_out), arrays.num_classes) == (40, 6, 10)
    none = written(tmp_path / "d", inputs=IMAGES[:6], targets=np.full(6, -100))
    assert read_arrays(path, none).num_classes == 7  # of targets that count
    wrong = written(tmp_path / "c.npz", inputs=IMAGES[:6, :2], targets=CLASSES[:6])
    with pytest.raises(DataError, match=r"c.npz: 'inputs' is float32 .* what is trained on has"):
        read_arrays(path, wrong)


def test_pixels_stay_bytes_and_numbers_are_targets_too(tmp_path):
    pixels = rng.integers(0, 256, (40, 4, 4, 3), dtype=np.uint8)
    targets = rng.normal(size=(40, 2)).astype(np.float16)
    weights = np.linspace(0, 1, 40)
    path = written(tmp_path / "a.npz", inputs=pixels, targets=targets, weights=weights)
    arrays = read_arrays(path, fraction=0.5)
    sample = arrays.held_out[2]
    assert arrays.num_classes is None and str(arrays).endswith("numbers")
    assert [sample[name].dtype for name in ("inputs", "targets", "weights")] == [
        np.uint8, np.float32, np.float32,
    ]  # fmt: skip


def test_all_held_out_samples_are_evaluated_on_once_where_they_fit(tmp_path):
    path = written(tmp_path / "a.npz", inputs=IMAGES, targets=CLASSES)
    samples = read_arrays(path, path).held_out
    batches = spread(samples, num_batches=100, batch_size=16)
    assert [batch["weights"].sum() for batch in batches] == [16, 16, 8]
    seen = np.concatenate([batch["targets"][batch["weights"] > 0] for batch in batches])
    np.testing.assert_array_equal(seen, CLASSES)
    few = spread(samples, num_batches=2, batch_size=4)
    assert [batch["weights"].sum() for batch in few] == [4, 4]


NAN = np.where(np.arange(40)[:, None, None] == 5, np.nan, IMAGES)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(targets=CLASSES), "has no array 'inputs': known: 'targets'"),
        (dict(inputs=IMAGES, target=CLASSES), "no array 'targets': did you mean 'target'"),
        (dict(inputs=IMAGES, targets=CLASSES, extra=CLASSES), "unknown array 'extra'"),
        (dict(inputs=NAN, targets=CLASSES), r"inputs\[5, 0, 0\] is nan; expected a number"),
        (dict(inputs=IMAGES * 1e300, targets=CLASSES), r"inputs\[0, 0, 0\] is .*e\+"),
        (dict(inputs=IMAGES, targets=CLASSES[:39]), "inputs 40, targets 39"),
        (dict(inputs=IMAGES, targets=CLASSES.astype(int) - 1), r"targets\[0\] is -1.*a class"),
        (dict(inputs=IMAGES, targets=CLASSES.astype(int) << 40), r"targets\[1\] is 1099.*a class"),
        (
            dict(inputs=IMAGES, targets=CLASSES.astype(object)),
            "'targets' cannot be read.*unpickled",
        ),
        (dict(inputs=IMAGES, targets=CLASSES.astype(str)), "'targets' is of type <U"),
        (dict(inputs=IMAGES[0, 0, 0], targets=CLASSES), r"'inputs' is of shape \(\)"),
        (dict(inputs=IMAGES[:2], targets=CLASSES[:2]), "of 2 samples there are none held out"),
        (dict(inputs=IMAGES, targets=CLASSES, weights=CLASSES), "'weights' is uint8"),
        (dict(inputs=IMAGES, targets=CLASSES, weights=-np.ones(40)), r"weights\[0\] is -1.0"),
    ],
)
@pytest.mark.parametrize("name", ["arrays.npz", "folder"])
def test_arrays_that_cannot_be_trained_on_are_refused(tmp_path, name, fields, message):
    with pytest.raises(DataError, match=message):
        read_arrays(written(tmp_path / name, **fields))


def test_what_holds_no_arrays_is_refused(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"nothing")
    for path, message in [("x.npz", "x.npz is no .npz"), ("none", "none is no .npz and no folder")]:
        with pytest.raises(DataError, match=message):
            read_arrays(tmp_path / path)
