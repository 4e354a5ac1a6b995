"""What a step is said to do, before it runs."""

import dataclasses
from typing import Any

import jax
import pytest

from jaxpipe.build import build_engine
from jaxpipe.config import Config, MetricsConfig, ModelConfig, PipelineConfig
from jaxpipe.trainer.work import step_record, step_work


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
