"""The tensor axis inside layers: values and gradients of every move, on four simulated devices."""

from collections.abc import Callable
from typing import Any

import flax.linen as flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from zoo import largest_error

import jaxpipe as jp
from jaxpipe import tensor
from jaxpipe.errors import LayerError, LossError
from jaxpipe.models import GPTConfig, gpt

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


# --- Layers in an engine -------------------------------------------------------------------------

TOKENS = np.random.default_rng(0).integers(0, 16, (8, 9), np.int32)
BATCH = dict(inputs=TOKENS[:, :-1], targets=TOKENS[:, 1:])


def engine(
    layers: Any, loss: Any = jp.nn.cross_entropy, *, pipe: int = 1, tensor: int
) -> jp.Engine:
    model = jp.PipelineModule(layers, loss)
    mesh = jp.make_mesh(pipe=pipe, tensor=tensor)
    return jp.initialize(model, mesh=mesh, num_microbatches=2)


def network(**settings: Any) -> list[Any]:
    sizes: Any = dict(vocab_size=16, width=16, num_layers=2, num_heads=4, sequence_length=8)
    return list(gpt(GPTConfig(**(sizes | settings))))


class Scaled(flax.Module):
    """A layer of a user's own, with Flax's own box around a cut parameter."""

    @flax.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        boxed = flax.with_partitioning(flax.initializers.normal(1.0), (None, "tensor"))
        kernel: Any = self.param("kernel", boxed, (16, 32 // tensor.size()))
        back: Any = self.param(
            "back", flax.with_partitioning(flax.initializers.normal(0.1), ("tensor", None)),
            (32 // tensor.size(), 16),
        )  # fmt: skip
        return x + tensor.sum_up(jnp.tanh(tensor.fan_out(x) @ kernel) @ back)


def test_layers_of_ones_own_run_beside_those_that_share():
    layers = network()
    layers.insert(2, jp.LayerSpec(flax.Dense, 16))
    layers.insert(1, jp.LayerSpec(Scaled))
    run = engine(layers, pipe=2, tensor=2)
    state = run.init(jax.random.key(0), BATCH)
    model = jp.PipelineModule(layers, jp.nn.cross_entropy)
    params = run.logical(state.params)
    assert largest_error(params, model.init(jax.random.key(0), BATCH)) < 1e-6
    loss, grads = run.value_and_grad(state.params, BATCH)
    want_loss, want = jax.value_and_grad(model.loss)(params, BATCH)
    np.testing.assert_allclose(loss, want_loss, rtol=1e-6)
    assert largest_error(run.logical(grads), want) < 1e-6


def test_cut_values_go_only_to_those_who_take_them():
    layers = network(sequence_parallel=True)
    layers.insert(2, jp.LayerSpec(flax.Dense, 16, name="mine"))
    with pytest.raises(LayerError, match=r"layer mine gets float32\[4,4,16\].*takes_cut"):
        engine(layers, tensor=2).partition(BATCH)
    with pytest.raises(LossError, match=r"the loss cross_entropy gets float32.*does not say"):
        engine(network(), jp.losses.cross_entropy, tensor=2).partition(BATCH)
    whole = [*network()[:-1], jp.LayerSpec(flax.Dense, 16)]
    with pytest.raises(LossError, match="the loss cross_entropy takes what is cut"):
        engine(whole, tensor=2).partition(BATCH)
    mixed = [network()[0], *network(sequence_parallel=True)[1:]]
    with pytest.raises(LayerError, match="01_Block takes what is cut"):
        engine(mixed, tensor=2).partition(BATCH)


def test_what_does_not_divide_is_named():
    odd = flax.with_partitioning(flax.initializers.zeros, (None, "tensor"))
    bias = jp.FunctionLayer(
        lambda p, x: x + jnp.sum(p), lambda key, x: odd(key, (1, 3), jnp.float32), name="odd"
    )
    layers = [jp.LayerSpec(flax.Embed, 16, 16), bias, jp.LayerSpec(flax.Dense, 16)]
    with pytest.raises(LayerError, match=r"layer odd: .*\(1, 3\).*dim 1, and tensor=2 does not"):
        engine(layers, jp.losses.cross_entropy, tensor=2).partition(BATCH)
    with pytest.raises(LayerError, match=r"Got .*4, expected a multiple of the 8 ranks"):
        engine(network(), tensor=8).partition(BATCH)
