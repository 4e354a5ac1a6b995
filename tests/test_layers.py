"""Layers of every library behind one face: what they compute, and what they are told."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.core import Tracer
from zoo import WIDTH, Block, NnxBlock, mean_loss, vectors

import jaxpipe as jp
from jaxpipe.errors import LayerError
from jaxpipe.layers import build_layers

KEY = jax.random.key(0)


def run(layers: Any, x: Any, *, key: Any = None, train: bool = False, **fields: Any) -> Any:
    """`(outputs, parameters)` of the plain model."""
    model = jp.PipelineModule(layers, lambda y, batch: jnp.zeros(()))
    batch = dict(inputs=x, **fields)
    params = model.init(KEY, batch)
    return model.apply(params, batch, key=key, train=train), params


def same(got: Any, want: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


X = vectors(4)["inputs"]


# --- Every sort -----------------------------------------------------------------------------------


@pytest.mark.parametrize("written", [jp.LayerSpec(nn.Dense, 3), nn.Dense(3)])
def test_linen_modules(written: Any):
    y, params = run([written], X)
    assert params.keys() == {"00_Dense"}
    same(y, nn.Dense(3).apply({"params": params["00_Dense"]}, X))


def test_nnx_classes_are_given_their_randomness():
    y, params = run([jp.LayerSpec(nnx.Linear, WIDTH, 3)], X)
    kernel, bias = params["00_Linear"]["kernel"], params["00_Linear"]["bias"]
    assert kernel.shape == (WIDTH, 3) and np.any(kernel)
    np.testing.assert_allclose(y, X @ kernel + bias, rtol=1e-6)


def test_nnx_classes_without_randomness():
    class Scale(nnx.Module):
        def __init__(self, start: float):
            self.scale = nnx.Param(jnp.full((), start))

        def __call__(self, x: Any) -> Any:
            return x * self.scale

    y, params = run([jp.LayerSpec(Scale, 3.0)], X)
    same(params, {"00_Scale": {"scale": jnp.float32(3)}})
    same(y, jnp.asarray(3 * X))


def test_a_ready_nnx_module_keeps_its_values():
    ready = nnx.Linear(WIDTH, 3, rngs=nnx.Rngs(7))
    want = nnx.to_pure_dict(nnx.state(ready, nnx.Param))
    y, params = run([ready], X)
    same(params, {"00_Linear": want})
    np.testing.assert_allclose(y, ready(jnp.asarray(X)), rtol=1e-6)
    model = jp.PipelineModule([jp.LayerSpec(Block), ready], mean_loss)
    batch = vectors(4)
    engine = jp.initialize(model, mesh=jp.make_mesh(pipe=2), num_microbatches=2)
    state = engine.init(jax.random.key(5), batch)
    same(engine.logical(state.params)["01_Linear"], jax.tree.map(np.asarray, want))
    same(ready.kernel[...], want["kernel"])  # no tracer, no other value has got in


def test_nnx_layers_that_run_alike_may_start_unlike():
    class Scale(nnx.Module):
        def __init__(self, start: float):
            self.scale = nnx.Param(jnp.full(WIDTH, start))

        def __call__(self, x: Any) -> Any:
            return x * self.scale

    ready = [nnx.Linear(WIDTH, WIDTH, rngs=nnx.Rngs(seed)) for seed in (7, 8)]
    scales = [jp.LayerSpec(Scale, 3.0), jp.LayerSpec(Scale, 5.0)]
    for layers, leaf in ((scales, "scale"), (ready, "kernel")):
        model = jp.PipelineModule([*layers, lambda x: x[:, :3]], mean_loss)
        want = [3.0, 5.0] if layers is scales else [one.kernel[0, 0] for one in ready]
        engine = jp.initialize(model, mesh=jp.make_mesh(pipe=2), num_microbatches=2)
        batch, key = vectors(4), jax.random.key(5)
        for made in (model.init(key, batch), engine.logical(engine.init(key, batch).params)):
            assert [tree[leaf].reshape(-1)[0] for tree in made.values() if tree] == want


def test_functions_with_arguments():
    y, params = run([jp.LayerSpec(jnp.clip, -0.5, max=0.25), jnp.negative, lambda x: x + 1], X)
    same(y, 1 - jnp.clip(X, -0.5, 0.25))
    assert params == {"00_clip": {}, "01_negative": {}, "02_lambda": {}}


def test_function_layers_with_parameters():
    init = lambda key, x, *, weights: dict(w=jax.random.normal(key, x.shape[-1:]), n=weights.size)
    apply = lambda params, x, *, weights: x * params["w"] + weights[:, None]
    layer = jp.FunctionLayer(apply, init, name="affine", batch_inputs=("weights",))
    weights = vectors(4)["weights"]
    y, params = run([layer], X, weights=weights)
    assert params["affine"]["n"] == 4
    np.testing.assert_allclose(y, X * params["affine"]["w"] + weights[:, None], rtol=1e-6)


def test_a_spec_may_give_a_function_layer_arguments():
    layer = jp.FunctionLayer(lambda w, x, power: w * x**power, lambda key, x: jnp.full((), 2.0))
    np.testing.assert_allclose(run([jp.LayerSpec(layer, 3)], X)[0], 2 * X**3, rtol=1e-5)


# --- Sequentials ----------------------------------------------------------------------------------


def test_a_linen_sequential_is_a_list_of_layers():
    net = nn.Sequential([nn.Dense(5), nn.tanh, nn.Sequential([nn.Dense(4), nn.Dense(3)])])
    y, params = run(net, X)
    assert list(params) == ["00_Dense", "01_tanh", "02_Dense", "03_Dense"]
    first, _, *inner = (params[name] for name in params)
    nested = {"layers_0": inner[0], "layers_1": inner[1]}
    same(y, net.apply({"params": {"layers_0": first, "layers_2": nested}}, X))


def test_an_nnx_sequential_is_a_list_of_layers_with_their_values():
    rngs = nnx.Rngs(3)
    inner = nnx.Sequential(nnx.Linear(5, 4, rngs=rngs), nnx.relu)
    net = nnx.Sequential(nnx.Linear(WIDTH, 5, rngs=rngs), nnx.tanh, inner)
    y, params = run(net, jnp.asarray(X))
    assert list(params) == ["00_Linear", "01_tanh", "02_Linear", "03_relu"]
    np.testing.assert_allclose(y, net(jnp.asarray(X)), rtol=1e-6)


class Pair(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return x, nn.Dense(x.shape[-1])(x)


class Named(nn.Module):
    @nn.compact
    def __call__(self, first: Any, second: Any) -> Any:
        return dict(b=first, a=second)


def test_sequentials_spread_tuples_and_dicts_as_flax_does():
    net = nn.Sequential([Pair(), Named(), lambda a, b: (a, b), lambda a, b: a - 2 * b])
    y, params = run(net, X)
    same(y, net.apply({"params": {"layers_0": params["00_Pair"]}}, X))
    pair = nnx.Sequential(lambda x: (x, 2 * x), lambda a, b: dict(b=a, a=b), lambda a, b: a - b)
    same(run(pair, X)[0], pair(jnp.asarray(X)))


def test_outside_of_sequentials_a_tuple_is_one_argument():
    same(run([lambda x: (x, x), lambda pair: pair[0] + pair[1]], X)[0], jnp.asarray(2 * X))


# --- Built late -----------------------------------------------------------------------------------


def test_nothing_is_built_before_it_is_needed():
    made: list[bool] = []  # one for each kernel: was there a value?

    def kernel_init(key: Any, shape: Any, dtype: Any = jnp.float32, *args: Any) -> Any:
        made.append(not isinstance(key, Tracer))
        return jnp.ones(shape, dtype)

    layers = [jp.LayerSpec(nn.Dense, WIDTH, kernel_init=kernel_init) for _ in range(3)]
    model = jp.PipelineModule(layers, mean_loss)
    engine = jp.initialize(model, mesh=jp.make_mesh(pipe=2), num_microbatches=2)
    assert not made
    batch = dict(inputs=X, targets=X)
    engine.partition(batch)
    assert len(made) >= 3 and not any(made)
    of_nnx = jp.LayerSpec(nnx.Linear, WIDTH, 3, kernel_init=kernel_init)
    jp.PipelineModule([of_nnx], mean_loss)
    assert not any(made)


def test_alike_layers_are_of_one_kind():
    kinds = lambda *written: len({layer.kind for layer in build_layers(list(written))})
    assert kinds(jp.LayerSpec(Block), jp.LayerSpec(Block), Block()) == 1
    assert kinds(jp.LayerSpec(Block, 0.1), jp.LayerSpec(Block, 0.2)) == 2
    nnx_block = lambda *args: jp.LayerSpec(NnxBlock, *args)
    assert kinds(nnx_block(WIDTH), nnx_block(WIDTH)) == 1
    assert kinds(nnx_block(WIDTH), nnx_block(2 * WIDTH), nnx_block(WIDTH, 0.5)) == 3
    multiply = lambda by: jp.LayerSpec(jnp.multiply, by)
    assert kinds(multiply(2), multiply(2)) == 1
    # 2 == 2.0 in Python, but integers times 2.0 are no integers.
    assert kinds(multiply(2), multiply(2.0), multiply(3), multiply(True), multiply(1)) == 5
    table = np.ones(3)
    assert kinds(multiply(table), multiply(table)) == 1
    assert kinds(multiply(table), multiply(np.ones(3))) == 2
    assert kinds(jp.LayerSpec(Block), jp.LayerSpec(Block, frozen=True)) == 2
    assert kinds(jp.LayerSpec(Block), jp.LayerSpec(Block, batch_inputs=("weights",))) == 2


# --- Names ----------------------------------------------------------------------------------------


def test_names_say_place_and_type():
    written = [jp.LayerSpec(Block), jp.LayerSpec(nn.Dense, 3, name="head"), jnp.sin, NnxBlock]
    written[-1] = jp.LayerSpec(NnxBlock, WIDTH)
    assert [x.name for x in build_layers(written)] == ["00_Block", "head", "02_sin", "03_NnxBlock"]
    assert [x.type_name for x in build_layers(written)] == ["Block", "Dense", "sin", "NnxBlock"]


@pytest.mark.parametrize(("count", "last"), [(100, "99_sin"), (101, "100_sin")])
def test_default_names_sort_as_the_layers_do(count: int, last: str):
    names = [layer.name for layer in build_layers([jnp.sin] * count)]
    assert names[-1] == last and names == sorted(names)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([], "at least one layer"),
        ([nn.Dense], "layer 0 .*A class is not built yet: write LayerSpec"),
        ([jnp.sin, 3], "layer 1 is 3; expected a LayerSpec, a Flax module"),
        ([jp.LayerSpec(dict)], "dict is a class, but neither a linen nor an NNX module"),
        ([jp.LayerSpec(jnp.sin, name="a/b")], "layer name 'a/b'.*letters, digits"),
        ([jp.LayerSpec(jnp.sin, name="a")] * 2, "two layers are named 'a'.*TiedLayerSpec"),
        ([jp.LayerSpec(jnp.sin, name="01_sin"), jnp.sin], "two layers are named '01_sin'"),
    ],
)
def test_what_is_no_layer_is_refused(layers: Any, said: str):
    with pytest.raises(LayerError, match=said):
        build_layers(layers)


# --- What a layer is told -------------------------------------------------------------------------


class Told(nn.Module):
    """Adds what it is told about the mode."""

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        return x + (1 if train else 2)


class ToldOtherwise(nn.Module):
    @nn.compact
    def __call__(self, x: Any, *, deterministic: bool, training: bool) -> Any:
        assert deterministic is not training
        return x + (2 if deterministic else 1)


class NnxTold(nnx.Module):
    def __init__(self):
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, x: Any) -> Any:
        return x + (2 if self.dropout.deterministic else 1)


def function_told(x: Any, train: bool) -> Any:
    return x + (1 if train else 2)


@pytest.mark.parametrize("made", [Told, ToldOtherwise, NnxTold, function_told])
@pytest.mark.parametrize(("train", "added"), [(True, 1), (False, 2)])
def test_layers_are_told_whether_they_train(made: Any, train: bool, added: int):
    same(run([jp.LayerSpec(made)], X, train=train, key=KEY)[0], jnp.asarray(X + added))


def test_functions_may_take_a_key():
    noise = lambda x, key: x if key is None else x + jax.random.normal(key, x.shape)
    same(run([noise], X)[0], X)
    same(run([noise], X, key=KEY)[0], run([noise], X, key=KEY)[0])
    assert np.any(run([noise], X, key=KEY)[0] != X)


class SumWith(nn.Module):
    @nn.compact
    def __call__(self, x: Any, *, weights: Any, targets: Any = None) -> Any:
        return x + weights[:, None] + (0 if targets is None else targets)


def test_side_inputs_come_by_name():
    layers = [
        jp.LayerSpec(SumWith, batch_inputs=("weights",)),
        jp.LayerSpec(SumWith, batch_inputs=("weights", "targets")),
    ]
    y, _ = run(layers, X, weights=np.arange(4.0, dtype=np.float32), targets=X)
    np.testing.assert_allclose(y, 2 * X + 2 * np.arange(4)[:, None], rtol=1e-6)


@pytest.mark.parametrize("block", [jp.LayerSpec(Block, 0.5), jp.LayerSpec(NnxBlock, WIDTH, 0.5)])
def test_dropout_follows_its_key(block: Any):
    model = jp.PipelineModule([block], mean_loss)
    inputs = vectors(16)["inputs"]
    batch = dict(inputs=inputs, targets=inputs)
    params = model.init(KEY, batch)
    apply = lambda **how: model.apply(params, batch, **how)
    once = apply(key=KEY, train=True)
    same(apply(key=KEY, train=True), once)  # NNX streams count on, so the second call would differ
    assert np.any(apply(key=jax.random.key(1), train=True) != once)
    assert np.any(apply(key=KEY, train=False) != once)
    same(apply(key=KEY, train=False), apply())


def test_a_mode_that_a_module_was_built_with_stays():
    drop = lambda fixed: [nn.Dropout(0.5, deterministic=fixed)]
    same(run(drop(True), X, key=KEY, train=True)[0], X)
    assert np.any(run(drop(False), X, key=KEY, train=False)[0] != X)


def test_two_layers_do_not_drop_alike():
    drop = [jp.LayerSpec(nn.Dropout, 0.5) for _ in range(2)]
    ones = np.ones((64, WIDTH), np.float32)
    one, _ = run(drop[:1], ones, key=KEY, train=True)
    both, _ = run(drop, ones, key=KEY, train=True)
    assert 0.15 < np.mean(np.asarray(both) != 0) < 0.35 < np.mean(np.asarray(one) != 0) < 0.65


# --- State is refused -----------------------------------------------------------------------------


class WithNorm(nn.Module):
    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        return nn.BatchNorm(use_running_average=not train)(x)


class Counter(nnx.Module):
    def __init__(self):
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, x: Any) -> Any:
        self.calls[...] += 1
        return x


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (jp.LayerSpec(WithNorm), "layer 01_WithNorm: WithNorm keeps state .*'batch_stats'.*mean"),
        (jp.LayerSpec(nn.BatchNorm, False), "01_BatchNorm: BatchNorm keeps state.*GroupNorm"),
        (jp.LayerSpec(nn.BatchNorm), "01_BatchNorm.*use_running_average"),
        (jp.LayerSpec(nnx.BatchNorm, WIDTH), "layer 1: BatchNorm keeps state: mean is a BatchStat"),
        (nnx.BatchNorm(WIDTH, rngs=nnx.Rngs(0)), "layer 1: BatchNorm keeps state.*LayerNorm"),
        (jp.LayerSpec(Counter), "layer 1: Counter keeps state: calls is a Variable"),
    ],
)
def test_layers_that_keep_state_are_refused_by_name(layer: Any, said: str):
    with pytest.raises(LayerError, match=said):
        jp.PipelineModule([jnp.sin, layer], mean_loss).outline(vectors(4))


# --- Ties -----------------------------------------------------------------------------------------


class Mix(nn.Module):
    def setup(self):
        self.kernel = self.param("kernel", nn.initializers.normal(), (WIDTH, WIDTH))

    def __call__(self, x: Any) -> Any:
        return x @ self.kernel


def test_a_tie_has_one_set_of_parameters():
    tie = lambda **how: jp.TiedLayerSpec("t", Mix, **how)
    back = tie(forward_fn=lambda mix, x: x @ mix.kernel.T)
    y, params = run([tie(name="mix"), jnp.sin, back], X)
    assert params.keys() == {"mix", "01_sin"}
    kernel = params["mix"]["kernel"]
    np.testing.assert_allclose(y, jnp.sin(X @ kernel) @ kernel.T, rtol=1e-5)


def test_functions_and_nnx_modules_can_be_tied():
    init = lambda key, x: jax.random.normal(key, (WIDTH, WIDTH))
    affine = jp.FunctionLayer(lambda w, x: x @ w, init)
    transposed = lambda w, x: x @ w.T
    layers = [jp.TiedLayerSpec("t", affine), jp.TiedLayerSpec("t", affine, forward_fn=transposed)]
    y, params = run(layers, X)
    (w,) = params.values()
    np.testing.assert_allclose(y, X @ w @ w.T, rtol=1e-4, atol=1e-5)
    tie = lambda **how: jp.TiedLayerSpec("t", nnx.Linear, WIDTH, WIDTH, use_bias=False, **how)
    y, params = run([tie(), tie(forward_fn=lambda linear, x: x @ linear.kernel[...].T)], X)
    w = params["00_Linear"]["kernel"]
    np.testing.assert_allclose(y, X @ w @ w.T, rtol=1e-4, atol=1e-5)


def test_ties_of_unequal_shapes_are_refused():
    layers = [jp.TiedLayerSpec("t", nn.Dense, 5), jp.TiedLayerSpec("t", nn.Dense, 5)]
    with pytest.raises(LayerError, match=r"01_Dense is tied to 00_Dense.*\[5,5\].*\[8,5\].*equal"):
        jp.PipelineModule(layers, mean_loss).outline(vectors(4))


def test_a_tie_is_frozen_as_its_owner_is():
    tie = lambda **how: jp.TiedLayerSpec("t", nn.Dense, WIDTH, **how)
    assert [x.frozen for x in build_layers([tie(frozen="bias"), tie()])] == ["bias", "bias"]


def test_specs_show_what_they_make():
    assert repr(jp.LayerSpec(nn.Dense, 8, use_bias=False)) == "LayerSpec(Dense, 8, use_bias=False)"
    assert repr(jp.TiedLayerSpec("t", nn.Dense, 8)) == "TiedLayerSpec(Dense, 8)"
