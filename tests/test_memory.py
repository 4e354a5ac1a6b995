"""What a device is said to hold, beside what XLA allocates."""

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxpipe as jp
from jaxpipe import nn
from jaxpipe.liveness import peak_bytes
from jaxpipe.models import LlamaConfig, llama

ROWS, TIME, WIDTH = 4, 64, 64
FLOAT = jax.ShapeDtypeStruct((256, 256), jnp.float32)
SIZE = 256 * 256 * 4


def engine_of(pipe: int, data: int = 1, tensor: int = 1, **settings):
    sizes = LlamaConfig(
        vocab_size=512, width=WIDTH, num_layers=4, num_heads=4, num_kv_heads=2, hidden=128,
        sequence_parallel=tensor > 1,
    )  # fmt: skip
    model = jp.PipelineModule(llama(sizes), nn.cross_entropy, partition_method="flops")
    mesh = jp.make_mesh(pipe=pipe, data=data, tensor=tensor)
    return jp.initialize(
        model, mesh=mesh, optimizer=optax.adamw(1e-3), num_microbatches=4, **settings
    )


def batch_of(data: int = 1):
    ids = jax.ShapeDtypeStruct((ROWS * 4 * data, TIME), jnp.int32)
    return dict(inputs=ids, targets=ids)


@pytest.mark.parametrize(
    ("mesh", "settings"),
    [
        ((2, 1, 1), dict(schedule="1f1b")),
        pytest.param((2, 1, 1), dict(schedule="zb-h1"), marks=pytest.mark.slow),
        pytest.param((4, 1, 1), dict(schedule="1f1b", remat="full"), marks=pytest.mark.slow),
        pytest.param((2, 2, 1), dict(schedule="1f1b", zero=1), marks=pytest.mark.slow),
        pytest.param((2, 2, 1), dict(schedule="1f1b", zero=3), marks=pytest.mark.slow),
        pytest.param((2, 1, 2), dict(schedule="1f1b"), marks=pytest.mark.slow),
    ],
)
def test_what_is_counted_is_what_xla_allocates(mesh, settings):
    engine, batch = engine_of(*mesh, **settings), batch_of(mesh[1])
    told = engine.memory(batch)
    real = engine.compiled(engine.abstract_state(batch), batch).memory_analysis()
    assert told.state + told.batch == pytest.approx(real.argument_size_in_bytes, rel=0.01)
    assert told.step == pytest.approx(real.temp_size_in_bytes, rel=0.3)


def test_more_is_held_where_more_is_kept():
    memory = lambda **settings: engine_of(2, **settings).memory(batch_of())
    plain, gpipe = memory(schedule="1f1b"), memory(schedule="gpipe")
    # GPipe holds all 4 microbatches where 1F1B holds 2; its last stage keeps them too.
    assert gpipe.residuals == pytest.approx(2 * plain.residuals, rel=0.1)
    assert gpipe.state == plain.state == 3 * plain.parameters
    assert memory(schedule="1f1b", remat="full").residuals < plain.residuals / 4
    assert plain.gradients == plain.parameters and plain.weights == 0


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (lambda x: (jnp.tanh(x * 2) + 1, ()), 1),  # one fused operation
        (lambda x: (x @ x, ()), 1),
        (lambda x: (jnp.tanh(x @ x), ()), 1),  # written over
        (lambda x: (x @ x @ x, ()), 2),
        (lambda x: ((x @ x, (x + 1) @ x), ()), 3),
        (lambda x: ((), (x @ x, (x + 1) @ x)), 2),  # spent as they are made
        (lambda x: ((x @ x) @ (x @ x), ()), 2),  # computed once
    ],
)
def test_what_is_alive_at_once(fn, expected):
    assert peak_bytes(fn, FLOAT) == expected * SIZE
