"""Losses: against NumPy in float64, in pieces, and for targets that are no classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpipe.errors import BatchError
from jaxpipe.losses import accuracy, cross_entropy, mean_squared_error

cross_entropy_fn = jax.jit(cross_entropy)
gradient_fn = jax.jit(jax.value_and_grad(lambda x, batch: cross_entropy(x, batch)[0]))


def reference_cross_entropy(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    top = logits.max(-1, keepdims=True)
    log_sum = np.log(np.exp(logits - top).sum(-1)) + top[..., 0]
    return log_sum - np.take_along_axis(logits, targets[..., None], -1)[..., 0]


@given(seed=st.integers(0, 1000), scale=st.sampled_from([0.1, 1.0, 100.0]), weighted=st.booleans())
@settings(max_examples=20, deadline=None)
def test_cross_entropy_is_that_of_numpy(seed, scale, weighted):
    random = np.random.default_rng(seed)
    logits = scale * random.standard_normal((2, 3, 5)).astype(np.float32)
    targets = random.integers(0, 5, (2, 3)).astype(np.int32)
    weights = random.random((2, 3)).astype(np.float32) if weighted else np.ones((2, 3), np.float32)
    batch = {"targets": jnp.asarray(targets)} | (
        {"weights": jnp.asarray(weights)} if weighted else {}
    )
    total, weight = cross_entropy_fn(jnp.asarray(logits), batch)
    expected = np.sum(reference_cross_entropy(logits, targets) * weights)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    np.testing.assert_allclose(weight, weights.sum(), rtol=1e-6)


def test_the_gradient_is_softmax_minus_one_hot():
    logits = jax.random.normal(jax.random.key(0), (2, 3, 5))
    batch = {"targets": jnp.array([[0, 1, 4], [2, 2, 3]]), "weights": jnp.arange(6.0).reshape(2, 3)}
    _, gradient = gradient_fn(logits, batch)
    expected = jax.nn.softmax(logits) - jax.nn.one_hot(batch["targets"], 5)
    np.testing.assert_allclose(gradient, expected * batch["weights"][..., None], atol=1e-6)


def test_pieces_of_a_batch_add_up_to_the_whole():
    logits = jax.random.normal(jax.random.key(0), (4, 3, 5))
    targets = jax.random.randint(jax.random.key(1), (4, 3), 0, 5)
    weights = jax.random.uniform(jax.random.key(2), (4, 3))
    whole = cross_entropy_fn(logits, {"targets": targets, "weights": weights})
    pieces = [
        cross_entropy_fn(
            logits[i : i + 1], {"targets": targets[i : i + 1], "weights": weights[i : i + 1]}
        )
        for i in range(4)
    ]
    np.testing.assert_allclose(whole, np.sum(pieces, axis=0), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_logits_are_summed_in_float32(dtype):
    logits = jax.random.normal(jax.random.key(0), (2, 64, 128)).astype(dtype)
    batch = {"targets": jnp.zeros((2, 64), jnp.int32)}
    total, weight = cross_entropy_fn(logits, batch)
    assert (total.dtype, weight.dtype) == (jnp.float32, jnp.float32)
    assert total == cross_entropy_fn(logits.astype(jnp.float32), batch)[0]
    assert gradient_fn(logits, batch)[1].dtype == dtype


@pytest.mark.parametrize("target", [-1, -99, 5, 2**31 - 1])
def test_a_target_that_is_no_class_gives_nan_and_not_some_other_class(target):
    logits = jnp.zeros((2, 5))
    batch = {"targets": jnp.array([1, target])}
    total, gradient = gradient_fn(logits, batch)
    assert jnp.isnan(total)
    assert jnp.isnan(gradient[1]).all() and jnp.isfinite(gradient[0]).all()


@pytest.mark.parametrize("target", [-100, 5])
def test_a_target_of_no_weight_may_be_anything(target):
    logits = jax.random.normal(jax.random.key(0), (2, 5))
    batch = {"targets": jnp.array([1, target]), "weights": jnp.array([True, False])}
    total, gradient = gradient_fn(logits, batch)
    assert total == cross_entropy_fn(logits[:1], {"targets": jnp.array([1])})[0]
    assert (gradient[1] == 0).all()
    assert cross_entropy_fn(logits, batch)[1] == 1


def test_a_target_of_minus_100_does_not_count():
    logits = jax.random.normal(jax.random.key(0), (3, 5))
    batch = {"targets": jnp.array([1, -100, 4])}
    total, gradient = gradient_fn(logits, batch)
    rest = {"targets": jnp.array([1, 4])}
    assert total == cross_entropy_fn(logits[jnp.array([0, 2])], rest)[0]
    assert cross_entropy_fn(logits, batch)[1] == 2
    assert (gradient[1] == 0).all() and accuracy(logits, batch)[1] == 2


def test_the_mean_squared_error_is_that_of_numpy():
    outputs = jax.random.normal(jax.random.key(0), (3, 4, 2), jnp.bfloat16)
    targets = jax.random.normal(jax.random.key(1), (3, 4, 2))
    total, weight = mean_squared_error(outputs, {"targets": targets})
    expected = np.mean((np.asarray(outputs, np.float64) - np.asarray(targets, np.float64)) ** 2)
    np.testing.assert_allclose(total / weight, expected, rtol=1e-6)
    assert (total.dtype, weight, weight.dtype) == (jnp.float32, 24, jnp.float32)


def test_the_mean_squared_error_weighs_examples():
    outputs = jnp.array([[1.0, 1.0], [3.0, 3.0], [9.0, 9.0]])
    batch = {"targets": jnp.zeros((3, 2)), "weights": jnp.array([1.0, 2.0, 0.0])}
    assert tuple(map(float, mean_squared_error(outputs, batch))) == (38.0, 6.0)
    assert tuple(map(float, mean_squared_error(outputs[:, 0], {"targets": jnp.zeros(3)}))) == (
        91,
        3,
    )


@pytest.mark.parametrize(
    ("loss", "batch", "says"),
    [
        (cross_entropy, {"labels": jnp.zeros((2, 3), jnp.int32)}, ["batch['targets']", "'labels'"]),
        (cross_entropy, {"targets": jnp.zeros((2, 4), jnp.int32)}, ["(2, 4)", "(2, 3)"]),
        (cross_entropy, {"targets": jnp.zeros((2, 3))}, ["float32", "integers"]),
        (
            cross_entropy,
            {"targets": jnp.zeros((2, 3), jnp.int32), "weights": jnp.zeros(2)},
            ["batch['weights']", "(2,)", "(2, 3)"],
        ),
        (mean_squared_error, {"inputs": jnp.zeros(2)}, ["batch['targets']", "'inputs'"]),
        (mean_squared_error, {"targets": jnp.zeros((2, 3))}, ["(2, 3)", "(2, 3, 5)"]),
        (
            mean_squared_error,
            {"targets": jnp.zeros((2, 3, 5)), "weights": jnp.zeros((2, 3))},
            ["batch['weights']", "(2, 3)", "(2,)"],
        ),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(loss, batch, says):
    with pytest.raises(BatchError) as error:
        loss(jnp.zeros((2, 3, 5)), batch)
    assert [part for part in says if part not in str(error.value)] == []
