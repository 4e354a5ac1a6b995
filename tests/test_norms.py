"""Norms of each layer's gradients: right wherever the layers live."""

import functools
from typing import Any

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from zoo import MODELS, batch_for

import jaxpipe as jp
from jaxpipe import nn
from jaxpipe.machine import Machine
from jaxpipe.models import LlamaConfig, llama
from jaxpipe.norms import layer_norms
from jaxpipe.spread import held
from jaxpipe.storage import place, specs


def of_llama() -> jp.PipelineModule:
    sizes: Any = dict(vocab_size=16, width=16, num_heads=4, num_layers=2, hidden=24)
    return jp.PipelineModule(
        llama(LlamaConfig(**sizes, num_kv_heads=4, tied=True)), nn.cross_entropy
    )


def norms_of(tree: Any) -> dict[str, float]:
    squares = lambda layer: sum(np.sum(np.square(np.float64(x))) for x in jax.tree.leaves(layer))
    own = {name: layer for name, layer in tree.items() if jax.tree.leaves(layer)}
    return {name: float(np.sqrt(squares(layer))) for name, layer in own.items()}


@pytest.mark.parametrize(
    ("model", "sizes", "schedule", "zero"),
    [
        ("unlike", (2, 1, 1), "1f1b", 0),
        ("unlike", (2, 3, 1), "interleaved", 2),
        ("tied", (4, 2, 1), "interleaved", 3),
        ("llama", (2, 2, 2), "1f1b", 3),
        ("llama", (2, 1, 2), "1f1b", 0),
    ],
)
def test_each_layers_norm_is_that_of_its_leaves(model: str, sizes: Any, schedule: str, zero: int):
    """On placed random gradients: no step is compiled."""
    pipe, data, tensor = sizes
    batch = batch_for("tied" if model == "llama" else model, 4 * data)
    module = of_llama() if model == "llama" else MODELS[model](8)
    mesh = jp.make_mesh(pipe=pipe, data=data, tensor=tensor)
    engine = jp.initialize(
        module, mesh=mesh, optimizer=optax.sgd(0.1), schedule=schedule, num_microbatches=4,
        zero=zero,
    )  # fmt: skip
    machine: Any = engine.init.__self__  # pyright: ignore[reportFunctionMemberAccess]
    assert isinstance(machine, Machine)
    layout = machine._settled(batch).layout.trainable.cut
    rng = np.random.default_rng(0)
    draw = lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype)
    tree = layout.treedef.unflatten([draw(leaf) for leaf in layout.leaves])
    grads = place(layout, mesh, tree)
    norms = lambda placed: layer_norms(layout, held(placed).rows)
    inside: Any = dict(in_specs=(specs(layout),), out_specs=PartitionSpec(), check_vma=False)
    found = jax.jit(jax.shard_map(norms, mesh=mesh, **inside))(grads)
    expected = norms_of(tree)
    assert found.keys() == expected.keys()
    for name, norm in found.items():
        np.testing.assert_allclose(norm, expected[name], rtol=1e-5, err_msg=name)


def test_a_train_step_gives_them_before_clipping_and_only_if_asked():
    model, batch = MODELS["tied"](3), batch_for("tied", 8)
    optimizer = optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(0.1))
    start = functools.partial(
        jp.initialize, model, mesh=jp.make_mesh(pipe=2, data=2), optimizer=optimizer,
        num_microbatches=2, zero=3,
    )  # fmt: skip
    engine = start(layer_norms=True)
    state = engine.init(jax.random.key(0), batch)
    params = engine.logical(state.params)
    _, metrics = engine.train_batch(state, batch)
    expected = norms_of(jax.jit(jax.grad(model.loss))(params, batch))
    assert metrics["layer_norms"].keys() == expected.keys()
    for name, norm in metrics["layer_norms"].items():
        np.testing.assert_allclose(norm, expected[name], rtol=1e-5, err_msg=name)
    squares = sum(float(norm) ** 2 for norm in metrics["layer_norms"].values())
    np.testing.assert_allclose(squares, float(metrics["grad_norm"]) ** 2, rtol=1e-5)
    plain = start()
    step: Any = lambda state, batch: plain.train_batch(state, batch)[1]
    assert "layer_norms" not in jax.eval_shape(step, plain.abstract_state(batch), batch)
