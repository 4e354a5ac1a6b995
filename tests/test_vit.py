"""The Vision Transformer: against stock parts, through a pipeline, and what it is told besides."""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo import largest_error

import jaxpipe as jp
from jaxpipe.errors import ConfigError, LayerError, LossError
from jaxpipe.layers import build_layers
from jaxpipe.models import ViTConfig, vit

SMALL = ViTConfig(num_classes=5, patch_size=2, width=16, num_layers=2, num_heads=2)
rng = np.random.default_rng(0)
BATCH: dict[str, Any] = dict(
    inputs=rng.normal(size=(8, 4, 6, 3)).astype(np.float32),
    targets=rng.integers(0, 5, 8, dtype=np.int32),
    weights=np.array([1, 1, 0, 1, 1, 0, 0, 1], np.float32),
)


def model_of(config: ViTConfig = SMALL) -> jp.PipelineModule:
    return jp.PipelineModule(
        vit(config), jp.losses.cross_entropy, metric_fns={"accuracy": jp.losses.accuracy}
    )


def moved(params: Any) -> Any:
    """Parameters in general position: no zeros and no ones."""
    random = np.random.default_rng(1)
    return jax.tree.map(
        lambda x: np.asarray(x) + 0.1 * random.standard_normal(x.shape, np.float32), params
    )


def reference(params: Any, images: jax.Array) -> jax.Array:
    """The same from the parts that Flax and JAX offer: a convolution for the patches."""
    first, *blocks, last = params.values()
    apply = lambda module, p, *x: module.apply({"params": p}, *x)
    norm = nn.LayerNorm(use_fast_variance=False)
    kernel = first["patch"]["kernel"].reshape(2, 2, 3, -1)
    conv = nn.Conv(16, (2, 2), strides=(2, 2), padding="VALID")
    x = apply(conv, dict(kernel=kernel, bias=first["patch"]["bias"]), images)
    x = x.reshape(len(images), -1, 16)
    token = jnp.broadcast_to(first["class_token"], (len(x), 1, 16))
    x = jnp.concatenate([token, x], axis=1) + first["position"]
    for p in blocks:
        qkv = apply(nn.Dense(48), p["attention"]["qkv"], apply(norm, p["attention_norm"], x))
        q, k, v = jnp.moveaxis(qkv.reshape(*x.shape[:2], 2, 3, -1), 3, 0)
        mixed = jax.nn.dot_product_attention(q, k, v).reshape(x.shape)
        x = x + apply(nn.Dense(16), p["attention"]["out"], mixed)
        hidden = apply(nn.Dense(64), p["mlp"]["up"], apply(norm, p["mlp_norm"], x))
        x = x + apply(nn.Dense(16), p["mlp"]["down"], nn.gelu(hidden))
    return apply(nn.Dense(5), last["logits"], apply(norm, last["norm"], x)[:, 0])


def test_logits_and_gradients_are_those_of_stock_parts():
    model = model_of()
    params = moved(jax.jit(model.init)(jax.random.key(0), BATCH))
    assert params["00_Patches"]["position"].shape == (7, 16)  # 2 x 3 patches and the class

    def loss(logits: Any, params: Any) -> jax.Array:
        total, weight = jp.losses.cross_entropy(logits(params), BATCH)
        return total / weight

    ours = jax.jit(jax.value_and_grad(lambda p: loss(lambda p: model.apply(p, BATCH), p)))
    stock = jax.jit(jax.value_and_grad(lambda p: loss(lambda p: reference(p, BATCH["inputs"]), p)))
    chex.assert_trees_all_close(ours(params), stock(params), rtol=2e-5, atol=2e-5)


def test_a_pipeline_with_tensor_ranks_gives_its_gradients_loss_and_accuracy():
    model = model_of()
    mesh = jp.make_mesh(pipe=2, tensor=2)
    engine = jp.initialize(model, mesh=mesh, num_microbatches=2, fill=float("nan"))
    state = engine.init(jax.random.key(0), BATCH)
    params = engine.logical(state.params)
    loss, grads = engine.value_and_grad(state.params, BATCH)
    want_loss, want = jax.jit(jax.value_and_grad(model.loss))(params, BATCH)
    logits = jax.jit(model.apply)(params, BATCH)
    np.testing.assert_allclose(loss, want_loss, rtol=1e-6)
    assert largest_error(engine.logical(grads), want) < 1e-6
    hits = np.argmax(logits, axis=-1) == BATCH["targets"]
    found = jax.device_get(engine.eval_batch(state, BATCH))
    weights = BATCH["weights"]
    expected = dict(loss=want_loss, weight=5.0, accuracy=(hits * weights).sum() / weights.sum())
    chex.assert_trees_all_close(found, jax.tree.map(np.float32, expected), rtol=1e-6)


def test_the_mean_of_patches_pixels_and_half_precision():
    config = ViTConfig(num_classes=5, patch_size=2, width=16, num_layers=1, pooling="mean")
    layers = build_layers(vit(config))
    pixels = rng.integers(0, 256, (2, 4, 4), dtype=np.uint8)  # of one channel
    x, side = jnp.asarray(pixels), {}
    grey = jnp.asarray(pixels[..., None] / 255, jnp.float32)
    for layer in layers:
        params = jax.jit(layer.init)(jax.random.key(0), x, side)
        apply = jax.jit(lambda params, x, layer=layer: layer.apply(params, x, side, None, False))
        if layer.index == 0:
            assert params["position"].shape == (4, 16) and "class_token" not in params
            np.testing.assert_allclose(apply(params, x), apply(params, grey), atol=1e-7)
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
        x = apply(params, x)
        assert x.dtype == jnp.bfloat16
    assert x.shape == (2, 5)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (np.zeros((2, 4, 5, 3), np.float32), "images of 4 x 5, which patches of 2 x 2"),
        (np.zeros((2, 4, 4), np.int32), "int32 and shape .2, 4, 4., expected images"),
        (np.zeros((2, 4), np.float32), r"shape \(2, 4\), expected images"),
    ],
)
def test_what_is_no_image_is_refused(inputs, message):
    with pytest.raises(LayerError, match=message):
        model_of().outline(dict(inputs=inputs, targets=np.zeros(2, np.int32)))


def test_sizes_and_names_that_cannot_be_are_refused():
    with pytest.raises(ConfigError) as error:
        ViTConfig(width=10, num_heads=4, patch_size=0, dropout=1.0)
    for part in ("width=10", "patch_size=0", "dropout=1.0"):
        assert part in str(error.value)
    with pytest.raises(LossError, match="metric_fns has 'loss'"):
        jp.PipelineModule(
            vit(SMALL), jp.losses.cross_entropy, metric_fns={"loss": jp.losses.accuracy}
        )
