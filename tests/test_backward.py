"""A stage's backward in two: I and W do the work of B between them, and none that nobody wants."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from zoo import MODELS, WIDTH, batch_for, mean_loss, vectors

import jaxpipe as jp
from jaxpipe.backward import StageCode
from jaxpipe.costs import flops, layer_costs
from jaxpipe.models import GPTConfig, convnet, gpt
from jaxpipe.partition import partition
from jaxpipe.stages import Remat, build_stages
from jaxpipe.storage.parameters import parameter_layout


def codes(
    model: jp.PipelineModule, batch: Any, num_stages: int = 3, remat: Remat = "none"
) -> list[StageCode]:
    """The code of each stage."""
    outline = model.outline(batch)
    cut = partition(layer_costs(model, outline), num_stages, "uniform")
    rank_of = [cut.stage_of(i) for i in range(len(model.layers))]
    layout = parameter_layout(model.layers, outline, rank_of, num_stages)
    stages = build_stages(model, outline, cut, range(num_stages), layout, remat=remat, train=True)
    found = [stages.stations[code].code for code in stages.codes]
    return [code for code in found if code is not None]


def inputs(code: StageCode) -> tuple[Any, ...]:
    """Shapes of weights, what F kept, context and the output's gradient."""
    plan = code.plan
    return list(plan.weights), list(code.kept), plan.context, plan.dy


def work(code: StageCode) -> tuple[float, float, float]:
    """FLOPs of B, I and W."""
    weights, kept, context, dy = inputs(code)
    _, left = jax.eval_shape(code.input_backward, weights, kept, context, dy)
    return (
        flops(code.backward, weights, kept, context, dy),
        flops(code.input_backward, weights, kept, context, dy),
        flops(code.weight_backward, weights, kept, context, left),
    )


class Scanned(nn.Module):
    """Four layers under `lax.scan`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        ups = self.param("up", nn.initializers.normal(), (4, WIDTH, 64))
        downs = self.param("down", nn.initializers.normal(), (4, 64, WIDTH))
        body = lambda x, w: (x + jnp.tanh(x @ w[0]) @ w[1], None)
        return lax.scan(body, x, (ups, downs))[0]


CONFIG = GPTConfig(vocab_size=32, width=32, num_layers=4, num_heads=2, sequence_length=16)
TOKENS = dict(inputs=np.zeros((2, 16), np.int32), targets=np.zeros((2, 16), np.int32))
DIGITS = dict(inputs=np.zeros((4, 8, 8, 1), np.float32), targets=np.zeros(4, np.int32))
BIG: dict[str, tuple[jp.PipelineModule, Any]] = dict(
    gpt=(jp.PipelineModule(gpt(CONFIG), jp.losses.cross_entropy), TOKENS),
    convnet=(jp.PipelineModule(convnet(10, (8, 16, 16)), jp.losses.cross_entropy), DIGITS),
    scanned=(
        jp.PipelineModule([*[jp.LayerSpec(Scanned)] * 3, jp.LayerSpec(nn.Dense, 3)], mean_loss),
        vectors(4),
    ),
)


@pytest.mark.parametrize("remat", ["none", "full", 1])
@pytest.mark.parametrize("name", BIG)
def test_i_and_w_do_the_work_of_b(name: str, remat: Remat):
    for code in codes(*BIG[name], remat=remat):
        whole, first, second = work(code)
        assert first + second == pytest.approx(whole, rel=0.02)
        if code.sends_dx:
            assert 0.2 * whole < second < 0.8 * whole
        else:
            assert first == 0


@pytest.mark.parametrize("name", MODELS)
def test_i_leaves_no_more_than_it_must(name: str):
    model, batch = MODELS[name](6), batch_for(name, 4)
    for code in codes(model, batch):
        kept = {(spec.shape, str(spec.dtype)) for spec in code.plan.weights}
        # No weight, and nothing that depends on weights alone.
        assert not {(s.shape, str(s.dtype)) for s in code.left if len(s.shape) > 1} & kept
        activations = [*jax.tree.leaves((code.plan.x, code.plan.y)), *code.kept]
        largest = max(np.prod(spec.shape) for spec in activations)
        assert all(np.prod(spec.shape) <= largest for spec in code.left)


def test_frozen_layers_do_no_w_work():
    half = [jp.LayerSpec(nn.Dense, WIDTH, frozen=frozen) for frozen in (False, True, True)]
    model = jp.PipelineModule([*half, jp.LayerSpec(nn.Dense, 3)], mean_loss)
    first, second, *_ = codes(model, vectors(4), 4)
    assert not first.sends_dx and work(first)[1] == 0 < work(first)[2]
    assert second.sends_dx and work(second)[2] == 0 < work(second)[1]
    assert second.left == ()


def test_the_first_stage_only_passes_the_gradient_on():
    code = codes(*BIG["gpt"])[0]
    assert [spec.shape for spec in code.left] == [(2, 16, 32)]
