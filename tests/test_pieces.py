"""Equations on arrays of which each device holds a piece give what they give on whole arrays."""

from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from jax.sharding import PartitionSpec as P
from zoo import largest_error

import jaxpipe as jp
from jaxpipe import jaxpr as jaxprs
from jaxpipe import nn, pieces
from jaxpipe.models import LlamaConfig, llama
from jaxpipe.pieces import Piece, own_piece
from jaxpipe.storage import Cut

DATA, TENSOR = 2, 2


def on_pieces(fn: Any, arrays: list[np.ndarray], dims: list[int | None]) -> list[np.ndarray]:
    """`fn` of arrays that are cut, each result whole."""
    closed, _ = jaxprs.trace(fn, *arrays)
    cuts = [
        Cut(x.shape, d, 1 if d is None else TENSOR, DATA) for x, d in zip(arrays, dims, strict=True)
    ]

    def run(*whole: Any) -> list[Any]:
        inputs = [Piece(own_piece(x, c), c) for x, c in zip(whole, cuts, strict=True)]
        env = jaxprs.initial_values(closed, inputs)
        return [
            pieces.whole(x) for x in pieces.evaluate(closed.jaxpr.eqns, env, closed.jaxpr.outvars)
        ]

    mesh = jp.make_mesh(data=DATA, tensor=TENSOR)
    mapped = jax.shard_map(run, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
    return [np.asarray(x) for x in jax.jit(mapped)(*arrays)]


FUNCTIONS = {
    "element by element": lambda x, y: (x * y + 2, jnp.where(x > y, x, -y), jnp.zeros_like(x)),
    "norms": lambda x, y: (x / jnp.sqrt(jnp.sum(x**2)), jnp.max(y), jnp.min(x) + jnp.sum(y)),
    "rows and columns": lambda x, y: (x - x.mean(0), y.sum(1), x.T @ y),
    "constants": lambda x, y: (jnp.full_like(x, 3) * y, jnp.arange(3.0), jnp.float32(2)),
    "loops": lambda x, y: (jax.lax.fori_loop(0, 3, lambda _, z: z @ x.T @ x, y),),
    "sums of sums": lambda x, y: (jnp.sum(x * jnp.sum(y)) + jnp.max(x), x * jnp.sum(y * x)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@settings(max_examples=6, deadline=None)
@given(
    rows=st.integers(1, 3),
    columns=st.integers(1, 5),
    dim=st.sampled_from([None, 0, 1]),
)
def test_functions_of_pieces(name: str, rows: int, columns: int, dim: int | None):
    shape = [rows, columns]
    if dim is not None:
        shape[dim] *= TENSOR
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, *shape)).astype(np.float32)
    want = FUNCTIONS[name](jnp.asarray(x), jnp.asarray(y))
    for got, expected in zip(on_pieces(FUNCTIONS[name], [x, y], [dim, dim]), want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_arrays_that_are_cut_differently_are_gathered():
    x, y = np.random.default_rng(0).standard_normal((2, 4, 6)).astype(np.float32)
    (got,) = on_pieces(lambda x, y: (x * y,), [x, y], [0, 1])
    np.testing.assert_array_equal(got, x * y)


OPTIMIZERS = {
    "lamb": optax.lamb(1e-2, eps=1e-3),
    "adafactor": optax.adafactor(1e-2, min_dim_size_to_factor=4, multiply_by_parameter_scale=True),
    "muon": optax.contrib.muon(1e-2),
    "masked": optax.chain(
        optax.adaptive_grad_clip(0.05),
        optax.adamw(1e-2, eps=1e-3, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
    ),
}


MORE = [("lamb", 3), ("masked", 1), ("lamb", 1), ("adafactor", 1), ("adafactor", 3)]
MORE += [("muon", 1), ("masked", 3)]


@pytest.mark.parametrize(
    ("name", "zero"),
    [
        ("muon", 3),
        *[pytest.param(*case, marks=pytest.mark.slow) for case in MORE],
    ],
)
def test_optimizers_see_true_leaves(name: str, zero: int):
    # Without biases: that of keys has no gradient but rounding, which adafactor and muon blow up.
    config = LlamaConfig(vocab_size=16, width=16, num_layers=1, num_heads=2, hidden=24)
    model = jp.PipelineModule(llama(config), nn.cross_entropy)
    ids = np.random.default_rng(0).integers(0, 16, (8, 5), np.int32)
    batch = dict(inputs=ids[:, :-1], targets=ids[:, 1:])
    engine = jp.initialize(
        model, mesh=jp.make_mesh(pipe=2, data=DATA, tensor=TENSOR), optimizer=OPTIMIZERS[name],
        num_microbatches=2, zero=zero,
    )  # fmt: skip
    state = engine.init(jax.random.key(0), batch)
    params = jax.tree.map(jnp.asarray, engine.logical(state.params))
    opt_state = OPTIMIZERS[name].init(params)

    @jax.jit
    def step(params: Any, opt_state: Any) -> Any:
        grads = jax.grad(model.loss)(params, batch)
        updates, opt_state = OPTIMIZERS[name].update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    for _ in range(3):
        state, _ = engine.train_batch(state, batch)
        params, opt_state = step(params, opt_state)
    assert largest_error(engine.logical(state.params), params) < 1e-5
    alone = jp.initialize(
        model, mesh=jp.make_mesh(pipe=2, tensor=TENSOR), optimizer=OPTIMIZERS[name],
        num_microbatches=2,
    )  # fmt: skip
    assert bytes_of_state(engine, batch) <= 0.6 * bytes_of_state(alone, batch)


def bytes_of_state(engine: jp.Engine, batch: Any) -> int:
    placed = engine.abstract_state(batch).opt_state
    assert placed is not None
    return placed.layout.bytes_per_rank
