"""The tensor axis inside layers: values and gradients of every move, on four simulated devices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jaxpipe as jp
from jaxpipe import tensor

X = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
CUT = P(None, "tensor")


def on_ranks(fn: Callable[..., Any], in_specs: Any, out_specs: Any, ranks: int = 4) -> Any:
    mesh = jp.make_mesh(tensor=ranks)
    return jax.jit(
        jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    )


def test_outside_a_pipeline_there_is_one_rank():
    assert (tensor.size(), tensor.index()) == (1, 0)
    x: Any = X
    for move in (tensor.fan_out, tensor.sum_up):
        assert move(x) is x
    for along in (tensor.all_gather, tensor.reduce_scatter, tensor.split, tensor.join):
        assert along(x, 1) is x


def test_unbound_hides_the_axis():
    def sizes(x: Any) -> Any:
        with tensor.unbound():
            inside = tensor.size()
        return x + inside * 10 + tensor.size()

    assert float(on_ranks(sizes, P(), P())(np.float32(0))) == 14


@pytest.mark.parametrize(
    "move, into, out",
    [
        (tensor.fan_out, P(), P()),
        (lambda x: tensor.all_gather(x, 1), CUT, P()),
        (lambda x: tensor.join(x, -1), CUT, P()),
        (lambda x: tensor.split(x, 1), P(), CUT),
    ],
)
def test_moves_keep_values(move: Any, into: Any, out: Any):
    np.testing.assert_array_equal(on_ranks(move, into, out)(X), X)


def test_partial_values_are_summed():
    total = X.reshape(4, 4, 2).sum(2)
    sums = lambda x: tensor.sum_up(x.reshape(4, 1, -1).sum(2))
    np.testing.assert_allclose(on_ranks(sums, CUT, P())(X), total.sum(1, keepdims=True), rtol=1e-6)
    spread = lambda x: tensor.reduce_scatter(jnp.tile(x, (1, 2)), 0)
    want = np.tile(X.reshape(4, 4, 2).sum(1), (1, 2))
    np.testing.assert_allclose(on_ranks(spread, CUT, P("tensor"))(X), want, rtol=1e-5, atol=1e-6)


def mlp(x: Any, up: Any, down: Any, way: str) -> jax.Array:
    """A column-parallel and a row-parallel product between whole or cut activations."""
    if way == "whole":
        return tensor.sum_up(jnp.tanh(tensor.fan_out(x) @ up) @ down)
    if way == "cut":  # x comes and goes in pieces of dim 0
        return tensor.reduce_scatter(jnp.tanh(tensor.all_gather(x, 0) @ up) @ down, 0)
    pieces = tensor.split(x, 0)
    done = tensor.reduce_scatter(jnp.tanh(tensor.all_gather(pieces, 0) @ up) @ down, 0)
    return tensor.join(done, 0)


@pytest.mark.parametrize("way", ["whole", "cut", "split and joined"])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_gradients_are_those_of_whole_arrays(way: str, ranks: int):
    rng = np.random.default_rng(1)
    up = 0.3 * rng.standard_normal((8, 16)).astype(np.float32)
    down = 0.3 * rng.standard_normal((16, 8)).astype(np.float32)

    def found(x: Any, up: Any, down: Any) -> Any:
        y, back = jax.vjp(lambda x, up, down: mlp(x, up, down, way), x, up, down)
        return y, back(2 * y)

    activations = P("tensor") if way == "cut" else P()
    weights = (P(None, "tensor"), P("tensor"))
    run = on_ranks(found, (activations, *weights), (activations, (activations, *weights)), ranks)
    want = found(X, up, down)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), run(X, up, down), want
    )
