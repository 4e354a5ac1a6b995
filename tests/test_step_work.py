"""What a step is said to do, before it runs."""

import dataclasses
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpipe as jp
from jaxpipe.build import build_engine
from jaxpipe.config import Config, MetricsConfig, ModelConfig, PipelineConfig
from jaxpipe.processes import ALONE
from jaxpipe.summary import StepRecord
from jaxpipe.trainer.work import measured, stage_flops, step_record, step_work


def work_of(**changes):
    config = Config(
        model=ModelConfig(layers=4, width=256, heads=4, vocab_size=512),
        pipeline=PipelineConfig(ranks=2, data=2, microbatches=4),
    )
    config = dataclasses.replace(config, **changes)
    size, length = config.trainer.batch_size, config.data.sequence_length
    ids = jax.ShapeDtypeStruct((size, length), "int32")
    engine, batch = build_engine(config), dict[str, Any](inputs=ids, targets=ids)
    return config, engine.partition(batch), step_work(engine, config, batch), engine


def test_flops_are_those_of_the_formula_and_recomputation_does_not_count():
    config, partition, work, engine = work_of()
    model, length = config.model, config.data.sequence_length
    tokens = config.trainer.batch_size * length
    count = sum(layer.parameters for layer in partition.layers)
    # Of the parameters, those that multiply: neither tokens' nor positions' vectors do.
    multiply = count - (512 + length) * model.width
    formula = tokens * (6 * multiply + 12 * model.layers * model.width * length)
    assert work.flops == pytest.approx(formula, rel=0.02)
    assert (work.items, work.unit, work.peak) == (tokens, "tokens", None)
    again = dataclasses.replace(config.pipeline, remat="full")
    *_, recomputed, _ = work_of(pipeline=again)
    assert recomputed.flops == work.flops
    assert work.bubble and 0 < work.bubble < 0.5
    step = step_record(engine, config, partition)
    assert step.planned.bubble_fraction == work.bubble and len(step.flops) == 2


def test_a_peak_of_ones_own_counts_for_each_device():
    *_, work, _ = work_of(metrics=MetricsConfig(peak_flops=1e12))
    assert work.peak == 4e12
    assert work.flops and work.mfu(work.items) == pytest.approx(work.flops / 4e12)


class Slow(nn.Module):
    """A layer that computes much more than can be counted beforehand."""

    times: int

    @nn.compact
    def __call__(self, x):
        y = nn.Dense(x.shape[-1])(x)
        z = jax.lax.stop_gradient(y)
        times = self.times + 0 * z[0, 0].astype(jnp.int32)  # as far as XLA knows, any number
        return y + jax.lax.fori_loop(0, times, lambda _, z: jnp.tanh(z @ z.T @ z), z)


def test_a_layer_that_really_is_slow_is_measured_and_its_stage_named():
    layers = [jp.LayerSpec(Slow, times) for times in (1, 200)]
    model = jp.PipelineModule(layers, jp.losses.mean_squared_error, partition_method="uniform")
    mesh = jp.make_mesh(pipe=2)
    engine = jp.initialize(model, mesh=mesh, optimizer=optax.sgd(1e-3), num_microbatches=2)
    x = np.random.default_rng(0).standard_normal((32, 32), np.float32)
    batch = dict(inputs=x, targets=x)
    partition = engine.partition(batch)
    flops = stage_flops(partition)
    assert flops[0] == flops[1]
    step = StepRecord(engine.schedule, engine.lockstep, flops, False, hosts=("here", "there"))
    found = measured(step, engine, engine.init(jax.random.key(0), batch), batch, ALONE)
    assert len(found.measured) == 2 and found.hosts == step.hosts
    [words] = found.slow_ranks()
    said = re.match(r"rank 1 on there \(stage 1\) takes (\S+) times what its FLOPs", words)
    assert said and float(said[1]) > 2
