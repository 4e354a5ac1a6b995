"""Small models of every sort, as deep as asked for, and batches for them."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxpipe as jp

WIDTH = 8
Batch = dict[str, Any]


def mean_loss(outputs: Any, batch: Mapping[str, Any]) -> jax.Array:
    return jnp.mean(jnp.square(outputs - batch["targets"]))


def weighted_loss(outputs: Any, batch: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
    errors = jnp.sum(jnp.square(outputs - batch["targets"]), axis=-1)
    return jnp.sum(errors * batch["weights"]), jnp.sum(batch["weights"])


def vectors(size: int, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    return dict(
        inputs=rng.normal(size=(size, WIDTH)).astype(np.float32),
        targets=rng.normal(size=(size, 3)).astype(np.float32),
        # Uneven over microbatches and data ranks.
        weights=(rng.uniform(size=size) ** 3).astype(np.float32),
    )


def tokens(size: int) -> Batch:
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 16, (size, 6), dtype=np.int32)
    weights = (rng.uniform(size=(size, 5)) < 0.3).astype(np.float32)
    return dict(inputs=drawn[:, :-1], targets=drawn[:, 1:], weights=weights)


class Block(nn.Module):
    rate: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        # E[x^2] - E[x]^2 of 8 features loses so many bits that plain float32 is 2e-6 off.
        h = nn.LayerNorm(use_fast_variance=False)(x)
        h = nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(2 * x.shape[-1])(h)))
        return x + nn.Dropout(self.rate, deterministic=not train)(h)


class NnxBlock(nnx.Module):
    def __init__(self, width: int, rate: float = 0.0, *, rngs: nnx.Rngs):
        self.up = nnx.Linear(width, 2 * width, rngs=rngs)
        self.down = nnx.Linear(2 * width, width, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.dropout(self.down(nnx.gelu(self.up(x))))


def linen(depth: int = 8, rate: float = 0.0) -> jp.PipelineModule:
    blocks = [jp.LayerSpec(Block, rate) for _ in range(depth)]
    return jp.PipelineModule([*blocks, jp.LayerSpec(nn.Dense, 3)], weighted_loss)


class Gentle(nn.Module):
    """A block that keeps float32's last bits over many layers."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x + 0.3 * jnp.tanh(nn.Dense(x.shape[-1])(jnp.tanh(nn.Dense(2 * x.shape[-1])(x))))


def gentle(depth: int) -> jp.PipelineModule:
    """12 layers in float32 are 3e-7 from float64; those of `linen` are 3e-6."""
    blocks = [jp.LayerSpec(Gentle) for _ in range(depth - 1)]
    return jp.PipelineModule([*blocks, jp.LayerSpec(nn.Dense, 3)], weighted_loss)


def of_nnx(depth: int = 8, rate: float = 0.0) -> jp.PipelineModule:
    blocks = [jp.LayerSpec(NnxBlock, WIDTH, rate) for _ in range(depth)]
    return jp.PipelineModule([*blocks, jp.LayerSpec(nnx.Linear, WIDTH, 3)], mean_loss)


def functions(depth: int = 8) -> jp.PipelineModule:
    def init(key: jax.Array, x: jax.Array) -> dict[str, jax.Array]:
        return dict(w=0.3 * jax.random.normal(key, (x.shape[-1], x.shape[-1])))

    affine = jp.FunctionLayer(lambda params, x: x + jnp.tanh(x @ params["w"]), init)
    out = jp.FunctionLayer(
        lambda w, x: x @ w, lambda key, x: jax.random.normal(key, (x.shape[-1], 3))
    )
    middle = ([affine, jnp.sin] * depth)[: depth - 1]
    return jp.PipelineModule([*middle, jp.LayerSpec(jnp.multiply, 2.0), out], mean_loss)


def unlike(depth: int = 8) -> jp.PipelineModule:
    """No two layers alike: kinds, leaf shapes and activations all differ."""
    widths = [12, 7, 20, 5][: (depth + 1) // 2]
    layers: list[Any] = []
    for width in widths:
        layers += [jp.LayerSpec(nn.Dense, width), nn.tanh]
    return jp.PipelineModule([*layers, jp.LayerSpec(nnx.Linear, widths[-1], 3)], weighted_loss)


def tied(depth: int = 8) -> jp.PipelineModule:
    embed: Callable[..., Any] = lambda **k: jp.TiedLayerSpec("embed", nn.Embed, 16, WIDTH, **k)
    attend = embed(forward_fn=lambda module, x: module.attend(x))
    blocks = [jp.LayerSpec(Block) for _ in range(depth - 1)]
    return jp.PipelineModule([embed(), *blocks, attend], jp.losses.cross_entropy)


class Gate(nn.Module):
    """A dict in, a dict out: floats, integers and a skip connection."""

    @nn.compact
    def __call__(self, tree: Any, *, weights: jax.Array) -> Any:
        x = tree["x"]
        y = nn.Dense(x.shape[-1])(jnp.tanh(x)) * (1 + weights[:, None])
        chosen = jnp.where(tree["step"][:, None] % 2 == 0, y, 0.5 * y)
        return dict(x=x + chosen, step=tree["step"] + 1, skip=tree["skip"])


def dicts(depth: int = 8) -> jp.PipelineModule:
    first = lambda x: dict(x=x, step=jnp.arange(x.shape[0], dtype=jnp.int32), skip=(0.5 * x,))
    last = lambda tree: tree["x"] + tree["skip"][0]
    gates = [jp.LayerSpec(Gate, batch_inputs=("weights",)) for _ in range(depth - 2)]
    return jp.PipelineModule([first, *gates, last, jp.LayerSpec(nn.Dense, 3)], mean_loss)


MODELS: dict[str, Callable[[int], jp.PipelineModule]] = dict(
    linen=linen, nnx=of_nnx, functions=functions, unlike=unlike, tied=tied, dicts=dicts
)


def batch_for(name: str, size: int) -> Batch:
    return tokens(size) if name == "tied" else vectors(size)


def largest_error(got: Any, want: Any) -> float:
    """The largest error of a leaf, relative to the leaf's largest value."""

    def error(a: Any, b: Any) -> float:
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        return float(np.max(np.abs(a - b)) / max(np.max(np.abs(b)), 1e-30)) if b.size else 0.0

    errors = jax.tree.leaves(jax.tree.map(error, got, want))
    return float(np.max(errors))  # NaN, if any, is the maximum
