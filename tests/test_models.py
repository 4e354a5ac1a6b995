"""The models as functions: shapes, what depends on what, and what backward keeps."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

from jaxpipe.errors import BatchError, ConfigError, LayerError
from jaxpipe.layers import Layer, LayerSpec, build_layers
from jaxpipe.losses import cross_entropy
from jaxpipe.models import GPTConfig, LlamaConfig, convnet, gpt, llama, mlp
from jaxpipe.models.gpt import Block, Embed, Position

SMALL = GPTConfig(vocab_size=17, width=16, num_layers=2, num_heads=2, sequence_length=12)
SMALL_LLAMA = LlamaConfig(
    vocab_size=17, width=16, num_layers=2, num_heads=4, num_kv_heads=2, hidden=24
)
MODELS = {
    "gpt": dataclasses.replace(SMALL, num_layers=1),
    "tied gpt": dataclasses.replace(SMALL, num_layers=1, tied=True),
    "llama": dataclasses.replace(SMALL_LLAMA, num_layers=1),
    "tied llama": dataclasses.replace(SMALL_LLAMA, num_layers=1, tied=True),
}
# Of each kind of block, and of each end, one.
every_model = pytest.mark.parametrize(
    "config",
    [
        pytest.param(
            config, id=name, marks=[] if name in ("gpt", "tied llama") else pytest.mark.slow
        )
        for name, config in MODELS.items()
    ],
)
KEY = jax.random.key(0)
NOTHING: dict[str, jax.Array] = {}


def tokens_of(batch: int = 2, time: int = 12, vocab_size: int = 17) -> np.ndarray:
    return np.array(jax.random.randint(jax.random.key(1), (batch, time), 0, vocab_size))


def with_others(tokens: np.ndarray, where: Any) -> np.ndarray:
    """Other tokens at some positions."""
    found = tokens.copy()
    found[:, where] = (tokens[:, where] + 1) % 17
    return found


Init = Callable[..., list[Any]]
Run = Callable[..., list[jax.Array]]


@functools.cache
def language_model(config: GPTConfig | LlamaConfig, packed: bool = False) -> tuple[Any, Run]:
    """Fresh parameters and `run`, which gives NumPy arrays: comparing them compiles nothing."""
    _, run = functions_of(layers_of(config, packed))
    on_host = lambda params, x, side=NOTHING: jax.device_get(run(params, x, side))
    return fresh(config), on_host


@functools.cache
def fresh(config: GPTConfig | LlamaConfig) -> Any:
    init, _ = functions_of(layers_of(config))
    return jax.device_get(init(tokens_of()))


def layers_of(config: GPTConfig | LlamaConfig, packed: bool = False) -> list[LayerSpec]:
    return gpt(config, packed) if isinstance(config, GPTConfig) else llama(config, packed)


def functions_of(specs: list[LayerSpec]) -> tuple[Init, Run]:
    """`init(x, side inputs) -> params` and `run(params, x, side inputs) -> each layer's output`."""
    layers = build_layers(specs)

    @jax.jit
    def init(x: jax.Array, side: Mapping[str, jax.Array] = NOTHING) -> list[Any]:
        params: dict[str, Any] = {}
        for layer in layers:
            own = layer.side_inputs(side)
            if not layer.is_tied:
                params[layer.name] = layer.init(jax.random.fold_in(KEY, layer.index), x, own)
            x = layer.apply(params[layer.owner], x, own, None, False)
        return [params[layer.owner] for layer in layers]

    @jax.jit
    def run(
        params: list[Any], x: jax.Array, side: Mapping[str, jax.Array] = NOTHING
    ) -> list[jax.Array]:
        outputs = []
        for layer, own in zip(layers, params, strict=True):
            x = layer.apply(own, x, layer.side_inputs(side), None, False)
            outputs.append(x)
        return outputs

    return init, run


def block_of(config: GPTConfig) -> Layer:
    return build_layers([LayerSpec(Block, config)])[0]


def test_a_gpt_takes_tokens_to_logits():
    (init, run), tokens = functions_of(gpt(SMALL)), tokens_of(3, 10)
    params = jax.eval_shape(init, tokens)
    assert [layer.type_name for layer in build_layers(gpt(SMALL))] == [
        "Embed",
        "Block",
        "Block",
        "Head",
    ]
    shapes = [x.shape for x in jax.eval_shape(run, params, tokens)]
    assert shapes == [(3, 10, 16)] * 3 + [(3, 10, 17)]
    chex.assert_trees_all_equal_shapes(params[1], params[2])


@pytest.mark.parametrize("layers", [gpt(SMALL), llama(SMALL_LLAMA)], ids=["gpt", "llama"])
def test_blocks_of_one_configuration_are_of_one_kind(layers):
    kinds = [layer.kind for layer in build_layers(layers)]
    assert kinds[1] == kinds[2]
    assert len(set(kinds)) == 3


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("tied gpt", ["Embedding", "Position", "Block", "LayerNorm"]),
        ("tied llama", ["Embedding", "Block", "RMSNorm"]),
    ],
    ids=["gpt", "llama"],
)
def test_a_tied_model_ends_with_the_vectors_it_begins_with(name, names):
    built = build_layers(layers_of(MODELS[name]))
    assert [layer.type_name for layer in built] == [*names, "Embedding"]
    assert built[-1].owner == built[0].name
    (params, run), tokens = language_model(MODELS[name]), tokens_of()
    outputs = run(params, tokens)
    want = outputs[-2] @ params[0]["embedding"].T
    np.testing.assert_allclose(outputs[-1], want, atol=1e-6)
    np.testing.assert_array_equal(outputs[0], params[0]["embedding"][tokens])


def test_a_llama_takes_tokens_to_logits():
    (init, run), tokens = functions_of(llama(SMALL_LLAMA)), tokens_of(3, 10)
    names = [layer.type_name for layer in build_layers(llama(SMALL_LLAMA))]
    assert names == ["Embedding", "Block", "Block", "Head"]
    params = jax.eval_shape(init, tokens)
    shapes = [x.shape for x in jax.eval_shape(run, params, tokens)]
    assert shapes == [(3, 10, 16)] * 3 + [(3, 10, 17)]
    leaves = jax.tree_util.tree_leaves_with_path(params[1])
    keys = {jax.tree_util.keystr(path, simple=True, separator="/"): x.shape for path, x in leaves}
    assert keys == {
        "attention_norm/scale": (16,),
        "attention/qkv/kernel": (16, 32),
        "attention/out/kernel": (16, 16),
        "mlp_norm/scale": (16,),
        "mlp/gate/kernel": (16, 24),
        "mlp/up/kernel": (16, 24),
        "mlp/down/kernel": (24, 16),
    }


@every_model
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("position", [1, 6, 11])
def test_logits_do_not_depend_on_later_tokens(position, packed, config):
    (params, run), tokens = language_model(config, packed), tokens_of()
    segment_ids = np.array([[0] * 12, [0] * 5 + [1] * 7], np.int32)
    side = {"segment_ids": segment_ids} if packed else {}
    changed = with_others(tokens, slice(position, None))
    before = run(params, tokens, side)[-1]
    after = run(params, changed, side)[-1]
    assert (before[:, :position] == after[:, :position]).all()
    assert (before[:, position:] != after[:, position:]).any(axis=-1).all()


@every_model
def test_logits_depend_on_all_earlier_tokens(config):
    (params, run), tokens = language_model(config), tokens_of()
    last = run(params, tokens)[-1][:, -1]
    for position in range(12):
        changed = with_others(tokens, position)
        assert (run(params, changed)[-1][:, -1] != last).any(axis=-1).all()


@every_model
def test_a_packed_sequence_gives_what_it_gives_alone(config):
    tokens = tokens_of()
    side = {"segment_ids": np.array([[3] * 4 + [1] * 4 + [7] * 4] * 2, np.int32)}
    params, packed = language_model(config, packed=True)
    _, alone = language_model(config)
    together = packed(params, tokens, side)[-1]
    for start in (0, 4, 8):
        expected = alone(params, tokens[:, start : start + 4])[-1]
        np.testing.assert_allclose(together[:, start : start + 4], expected, atol=2e-6)


@every_model
def test_segments_are_isolated(config):
    tokens = tokens_of(2)
    side = {"segment_ids": np.array([[0] * 4 + [1] * 8, [7] * 4 + [2] * 8], np.int32)}
    params, run = language_model(config, packed=True)
    changed = with_others(tokens, slice(4))
    before = run(params, tokens, side)[-1]
    after = run(params, changed, side)[-1]
    assert (before[:, 4:] == after[:, 4:]).all()
    assert (before[:, :4] != after[:, :4]).any(axis=-1).all()


def reference_block(p: Any, x: jax.Array, num_heads: int) -> jax.Array:
    """The same block from the parts that Flax and JAX offer."""

    def dense(part: str, name: str, x: jax.Array) -> jax.Array:
        return x @ p[part][name]["kernel"] + p[part][name]["bias"]

    def norm(name: str, x: jax.Array) -> Any:
        return nn.LayerNorm(use_fast_variance=False).apply({"params": p[name]}, x)

    qkv = dense("attention", "qkv", norm("attention_norm", x))
    q, k, v = jnp.moveaxis(qkv.reshape(*x.shape[:2], num_heads, 3, -1), 3, 0)
    mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    x = x + dense("attention", "out", mixed.reshape(x.shape))
    return x + dense("mlp", "down", jax.nn.gelu(dense("mlp", "up", norm("mlp_norm", x))))


def perturbed(tree: Any) -> Any:
    """Parameters in general position: no zeros and no ones."""
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: np.asarray(x) + 0.1 * random.standard_normal(x.shape, np.float32), tree
    )


def test_a_block_and_its_gradients_equal_a_block_of_stock_parts():
    block = block_of(SMALL)
    x = jax.random.normal(jax.random.key(2), (2, 12, 16))
    params = perturbed(jax.jit(block.init)(KEY, x, {}))

    def ours(p: Any, x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(block.apply(p, x, {}, None, False)))

    def stock(p: Any, x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(reference_block(p, x, SMALL.num_heads)))

    got = jax.jit(jax.value_and_grad(ours, (0, 1)))(params, x)
    expected = jax.jit(jax.value_and_grad(stock, (0, 1)))(params, x)
    chex.assert_trees_all_close(got, expected, rtol=2e-5, atol=2e-5)


def reference_llama_block(p: Any, x: jax.Array, config: LlamaConfig) -> jax.Array:
    """The same block from the parts that Flax and JAX offer, and complex numbers."""
    batch, time, width = x.shape
    size = width // config.num_heads
    turn = config.rotary_theta ** (-jnp.arange(size // 2) * 2.0 / size)
    turns = jnp.exp(1j * jnp.arange(time)[:, None, None] * turn)

    def norm(name: str, x: jax.Array) -> Any:
        return nn.RMSNorm(config.norm_eps).apply({"params": p[name]}, x)

    def rotated(x: jax.Array) -> jax.Array:
        pairs = jax.lax.complex(x[..., : size // 2], x[..., size // 2 :]) * turns
        return jnp.concatenate([pairs.real, pairs.imag], axis=-1)

    qkv = norm("attention_norm", x) @ p["attention"]["qkv"]["kernel"]
    groups = qkv.reshape(batch, time, config.num_kv_heads, -1, size)
    q = groups[..., :-2, :].reshape(batch, time, config.num_heads, size)
    k, v = groups[..., -2, :], groups[..., -1, :]
    mixed = jax.nn.dot_product_attention(rotated(q), rotated(k), v, is_causal=True)
    x = x + mixed.reshape(x.shape) @ p["attention"]["out"]["kernel"]
    read, mlp = norm("mlp_norm", x), p["mlp"]
    gated = jax.nn.silu(read @ mlp["gate"]["kernel"]) * (read @ mlp["up"]["kernel"])
    return x + gated @ mlp["down"]["kernel"]


def test_a_llama_block_and_its_gradients_equal_a_block_of_stock_parts():
    block = build_layers(llama(SMALL_LLAMA))[1]
    x = jax.random.normal(jax.random.key(2), (2, 12, 16))
    params = perturbed(jax.jit(block.init)(KEY, x, {}))

    def ours(p: Any, x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(block.apply(p, x, {}, None, False)))

    def stock(p: Any, x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(reference_llama_block(p, x, SMALL_LLAMA)))

    got = jax.jit(jax.value_and_grad(ours, (0, 1)))(params, x)
    expected = jax.jit(jax.value_and_grad(stock, (0, 1)))(params, x)
    chex.assert_trees_all_close(got, expected, rtol=2e-5, atol=2e-5)


def kept(block: Layer, x: jax.Array) -> int:
    """How many numbers the backward of a block keeps besides the weights."""

    def besides(params: Any, x: jax.Array) -> list[jax.Array]:
        pullback = jax.vjp(lambda p, x: block.apply(p, x, {}, None, False), params, x)[1]
        weights = {id(leaf) for leaf in jax.tree.leaves(params)}
        return [leaf for leaf in jax.tree.leaves(pullback) if id(leaf) not in weights]

    params = jax.eval_shape(lambda: block.init(KEY, x, {}))
    return sum(leaf.size for leaf in jax.eval_shape(besides, params, x))


def test_backward_keeps_twelve_widths_per_token():
    # For attention input 1, normed 1, qkv 3, mixed 1; for the MLP input 1, normed 1, hidden 4.
    x = jnp.ones((2, 12, 16))
    assert kept(block_of(SMALL), x) == 12 * x.size


def test_backward_of_a_llama_keeps_ten_widths_per_token():
    # For attention input 1, normed 1, qkv 2, mixed 1; for the MLP input 1, normed 1, hidden 3.
    x = jnp.ones((2, 12, 16))
    assert kept(build_layers(llama(SMALL_LLAMA))[1], x) == 10 * x.size


def test_dropout_drops_in_training_only():
    x = jax.random.normal(KEY, (2, 12, 16))
    plain, dropping = block_of(SMALL), block_of(dataclasses.replace(SMALL, dropout=0.5))
    params = jax.jit(plain.init)(KEY, x, {})

    @functools.partial(jax.jit, static_argnums=1)
    def run(seed: int, train: bool) -> jax.Array:
        return dropping.apply(params, x, {}, jax.random.key(seed), train)

    apply = jax.jit(lambda train: plain.apply(params, x, {}, None, train), static_argnums=0)
    undropped = apply(False)
    assert (run(0, False) == undropped).all()
    assert (run(0, True) == run(0, True)).all()
    assert (run(0, True) != run(1, True)).any()
    assert (run(0, True) != undropped).any()
    assert (apply(True) == undropped).all()


def test_the_first_loss_is_that_of_a_guess():
    config = GPTConfig(vocab_size=256, width=64, num_layers=1, sequence_length=32)
    tokens = tokens_of(4, 32, 256)
    init, run = functions_of(gpt(config))
    logits = run(init(tokens), tokens)[-1]
    total, weight = jax.jit(cross_entropy)(logits, {"targets": tokens[:, ::-1]})
    assert abs(float(total / weight) - math.log(256)) < 0.1


def test_what_is_added_to_the_residual_starts_small():
    config = GPTConfig(width=128, num_layers=8)
    params = jax.jit(block_of(config).init)(KEY, jnp.ones((1, 4, 128)), {})
    dense = params["attention"] | params["mlp"]
    for name, scale in [("qkv", 0.02), ("up", 0.02), ("out", 0.005), ("down", 0.005)]:
        np.testing.assert_allclose(np.std(dense[name]["kernel"]), scale, rtol=0.05)
        assert (dense[name]["bias"] == 0).all()


@every_model
def test_a_language_model_runs_in_bfloat16(config):
    (params, run), tokens = language_model(config), tokens_of()
    half = jax.tree.map(lambda x: np.astype(x, jnp.bfloat16), params)
    logits = run(half, tokens)[-1]
    assert logits.dtype == jnp.bfloat16
    expected = run(params, tokens)[-1]
    np.testing.assert_allclose(logits.astype(np.float32), expected, atol=0.02)


def test_sizes_that_cannot_be_are_listed():
    with pytest.raises(ConfigError) as error:
        GPTConfig(vocab_size=0, width=10, num_heads=4, dropout=1.0)
    said = str(error.value)
    assert "vocab_size=0" in said and "width=10" in said and "num_heads=4" in said
    assert "dropout=1.0" in said and "num_layers" not in said


def test_sizes_of_a_llama_that_cannot_be_are_listed():
    with pytest.raises(ConfigError) as error:
        LlamaConfig(hidden=0, width=12, num_heads=4, num_kv_heads=3, dropout=-1, norm_eps=0)
    said = str(error.value)
    for part in ("hidden=0", "width=12", "num_kv_heads=3", "dropout=-1", "norm_eps=0 is not above"):
        assert part in said
    assert "num_layers" not in said and "rotary_theta" not in said


def test_a_sequence_that_is_too_long_is_refused():
    with pytest.raises(BatchError, match=r"13 tokens.*sequence_length=12"):
        Embed(SMALL).init(KEY, tokens_of(1, 13))
    with pytest.raises(BatchError, match=r"13 tokens.*sequence_length=12"):
        Position(SMALL).init(KEY, jnp.zeros((1, 13, 16)))


def test_an_mlp_is_one_matrix_after_the_other():
    x = jax.random.normal(KEY, (3, 5))
    init, run = functions_of(mlp([7, 4, 2], "tanh"))
    params = perturbed(init(x))
    outputs = run(params, x)
    assert [y.shape for y in outputs] == [(3, 7), (3, 4), (3, 2)]
    expected = x
    for index, layer in enumerate(params):
        kernel, bias = layer["linear"]["kernel"], layer["linear"]["bias"]
        expected = expected @ kernel + bias
        expected = jnp.tanh(expected) if index < 2 else expected
    np.testing.assert_allclose(outputs[-1], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("widths", "activation", "says"),
    [([], "gelu", r"\[\]"), ([3, 0], "gelu", r"\[3, 0\]"), ([3], "gelo", "mean 'gelu'")],
)
def test_an_mlp_that_cannot_be_is_refused(widths, activation, says):
    with pytest.raises(ConfigError, match=says):
        mlp(widths, activation)


def test_a_convnet_changes_shape_from_layer_to_layer():
    images = jnp.ones((2, 8, 8, 1))
    init, run = functions_of(convnet(channels=(16, 32)))
    outputs = jax.eval_shape(lambda x: run(init(x), x), images)
    shapes = [y.shape[1:] for y in outputs]
    assert shapes == [(8, 8, 16), (4, 4, 16), (4, 4, 32), (2, 2, 32), (128,), (10,)]


def test_a_convnet_learns_digits():
    pixels, classes = load_digits(return_X_y=True)
    images = jnp.asarray(pixels[:128], jnp.float32).reshape(128, 8, 8, 1) / 16
    batch = {"targets": jnp.asarray(classes[:128], jnp.int32)}
    init, run = functions_of(convnet(channels=(8, 16)))
    params = init(images)
    optimizer = optax.adam(1e-2)

    def loss(params: Any) -> jax.Array:
        total, weight = cross_entropy(run(params, images)[-1], batch)
        return total / weight

    @jax.jit
    def step(params: Any, state: Any) -> tuple[Any, Any, jax.Array]:
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, value

    state, losses = optimizer.init(params), []
    for _ in range(30):
        params, state, value = step(params, state)
        losses.append(float(value))
    assert losses[0] > 2.0
    assert losses[-1] < 0.5


def test_a_convnet_that_cannot_be_is_refused():
    with pytest.raises(ConfigError, match=r"channels=\[16, 0\]"):
        convnet(channels=(16, 0))
    with pytest.raises(LayerError, match="1 x 1"):
        functions_of(convnet(channels=(2, 2, 2, 2)))[0](jnp.ones((1, 8, 8, 1)))
