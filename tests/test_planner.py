"""Runs on paper: what fits, what is near it, and the configurations for real clusters."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from test_cli import ended

import jaxpipe as jp
from jaxpipe.build import build_engine
from jaxpipe.config import Config, DataConfig, ModelConfig, PipelineConfig, TrainerConfig, read
from jaxpipe.errors import ConfigError
from jaxpipe.planner import (
    CHIPS,
    Assumptions,
    Devices,
    abstract_batch,
    described_mesh,
    with_classes,
)
from jaxpipe.planner.traffic import exchanged_bytes
from jaxpipe.schedules import simulate

REPOSITORY = Path(__file__).parents[1]
CONFIGS = REPOSITORY / "configs"
# Llama 2's own sizes: weights of its published checkpoints, arXiv:2307.09288.
PUBLISHED = {"llama-7b": 6_738_415_616, "llama-70b": 68_976_648_192}
CLUSTERS = [pytest.param(name, marks=pytest.mark.slow) for name in PUBLISHED]


def small(**pipeline: Any) -> Config:
    settings: Any = dict(ranks=2, microbatches=4, data=2) | pipeline
    return Config(
        model=ModelConfig(network="llama", layers=6, width=64, heads=4, vocab_size=512),
        data=DataConfig(source="synthetic", vocab_size=512, sequence_length=64),
        pipeline=PipelineConfig(**settings),
        trainer=TrainerConfig(batch_size=32, steps=100),
    )


def chip(memory: float) -> Devices:
    return Devices(4, dataclasses.replace(CHIPS["H100"], memory=memory))


@pytest.fixture(scope="module")
def roomy():
    return jp.plan(small(), chip(80e9))


def test_what_fits_is_described(roomy):
    assert roomy.fits and not roomy.alternatives
    config, text = roomy.config, str(roomy)
    held = f"{roomy.memory.total / 1e6:,.1f} MB"
    assert text.startswith(f"fits: {held} of 72.0 GB on each device")
    assert f"{roomy.parameters:,} parameters; pipe 2 x data 2 x tensor 1" in text
    tokens = config.trainer.batch_size * config.data.sequence_length
    assert roomy.per_second == pytest.approx(tokens / roomy.speed.step)
    assert 0 < roomy.utilization < 0.5
    here = next(count for count in roomy.counts if count.microbatches == 4)
    assert here.bytes == pytest.approx(roomy.memory.total)
    assert here.seconds == pytest.approx(roomy.speed.step)
    # Twice as many, half as large: less is held, and fewer ranks wait at the ends.
    more = next(count for count in roomy.counts if count.microbatches == 8)
    assert more.bytes < here.bytes and more.seconds < here.seconds


def test_a_count_is_what_a_plan_of_it_says(roomy):
    guessed = next(count for count in roomy.counts if count.microbatches == 8)
    real = jp.plan(small(microbatches=8), chip(80e9))
    assert guessed.bytes == pytest.approx(real.memory.total, rel=0.03)
    assert guessed.seconds == pytest.approx(real.speed.step, rel=0.03)


def test_the_time_is_that_of_the_simulated_schedule(roomy):
    half = jp.plan(small(), chip(80e9), assumed=Assumptions(efficiency=0.25))
    assert half.speed.timeline.makespan == pytest.approx(2 * roomy.speed.timeline.makespan, rel=0.2)
    lockstep = build_engine(roomy.config, described_mesh(CHIPS["H100"], 2, 2, 1)).lockstep
    again = simulate(roomy.schedule, roomy.speed.costs, lockstep)
    assert again.makespan == roomy.speed.timeline.makespan
    assert roomy.speed.useful == pytest.approx(
        6 * roomy.parameters * 32 * 64, rel=0.5  # attention and embeddings beside 6 N tokens
    )  # fmt: skip


def test_the_nearest_that_fit_change_least(roomy):
    memory = 0.8 * roomy.memory.total / 0.9
    tight = jp.plan(small(), chip(memory))
    assert not tight.fits and len(tight.alternatives) == 3
    assert "DOES NOT FIT" in str(tight) and tight.alternatives[0].options in str(tight)
    assert [len(one.changes) for one in tight.alternatives] == sorted(
        len(one.changes) for one in tight.alternatives
    )
    assert len(tight.alternatives[0].changes) == 1
    assert all(one.bytes <= tight.limit for one in tight.alternatives)
    assert len({one.options for one in tight.alternatives}) == 3
    # What is said to fit does.
    changes = {name.split(".")[1]: value for name, value in tight.alternatives[-1].changes.items()}
    assert jp.plan(small(**changes), chip(memory)).fits


def test_too_few_devices_do_not_fit():
    plan = jp.plan(small(data=4), chip(80e9), alternatives=1)
    assert not plan.fits and "the mesh has 8 devices, and there are 4" in str(plan)
    assert plan.alternatives[0].changes in ({"pipeline.data": 2}, {"pipeline.ranks": 1})


def test_what_cannot_be_planned_is_said(capsys):
    for text in ("64", "H100", "0xH100", "64 x"):
        with pytest.raises(ConfigError, match="a number and a chip, such as 64xH100"):
            jp.plan(small(), text)
    with pytest.raises(ConfigError, match="did you mean 'H100'"):
        jp.plan(small(), "8xH10O")
    with pytest.raises(ConfigError, match="no matrix products of float16"):
        jp.plan(small(compute_dtype="float16"), "4xv5p")
    vit = str(CONFIGS / "vit-digits.yaml")
    code, _, err = ended(capsys, "plan", vit, "--data.path", "nowhere.npz")
    assert code == 2 and "data.path: got 'nowhere.npz', which is not here" in err


def test_images_are_planned_by_the_first_of_them(tmp_path, capsys):
    pixels, digits = np.zeros((3, 32, 32, 3), np.uint8), np.array([0, 99, -100])
    np.savez(tmp_path / "x.npz", inputs=pixels, targets=digits)
    vit = [str(CONFIGS / "vit-digits.yaml"), "--data.path", str(tmp_path / "x.npz")]
    code, out, err = ended(capsys, "plan", *vit, "--devices", "4xA100")
    assert (code, err) == (0, "") and out.startswith("fits: ")
    config = read(CONFIGS / "vit-digits.yaml")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=vit[2]))
    batch = abstract_batch(config)
    assert (batch["inputs"].shape, batch["inputs"].dtype) == ((64, 32, 32, 3), "uint8")
    assert (batch["targets"].shape, batch["weights"].shape) == ((64,), (64,))
    config = with_classes(config)
    assert config.model.classes == 100 and with_classes(config) == config
    few = dataclasses.replace(config, model=dataclasses.replace(config.model, classes=5))
    with pytest.raises(ConfigError, match="got 5, expected room for the data's 100 classes"):
        with_classes(few)
    # What is trained has as many parameters.
    params = jax.eval_shape(build_engine(config).abstract_state, batch).params
    made = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params.layout.leaves))
    assert f"{made:,} parameters" in out and "samples/s" in out
    np.savez(tmp_path / "x.npz", inputs=pixels, targets=digits / 2)
    floats = r"are floats, but model\.network = 'vit' predicts classes"
    with pytest.raises(ConfigError, match=floats):
        with_classes(dataclasses.replace(config, model=read(CONFIGS / "vit-digits.yaml").model))


def test_sums_over_tensor_are_counted():
    mesh = described_mesh(CHIPS["H100"], 1, 1, 4)
    x = jax.ShapeDtypeStruct((8, 16), "float32")
    sent = lambda fn: exchanged_bytes(fn, x, mesh=mesh)
    assert sent(lambda x: jax.lax.psum(x, "tensor")) == 2 * 3 / 4 * 8 * 16 * 4
    gather = lambda x: jax.lax.all_gather(x, "tensor", axis=0, tiled=True)
    assert sent(gather) == 3 / 4 * 4 * 8 * 16 * 4
    twice = lambda x: jax.lax.scan(lambda c, _: (jax.lax.psum(c, "tensor"), ()), x, length=2)[0]
    assert sent(twice) == 2 * sent(lambda x: jax.lax.psum(x, "tensor"))
    assert sent(lambda x: x + 1) == 0


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_configurations_for_clusters_fit(name, capsys):
    path = str(CONFIGS / f"{name}.yaml")
    assert ended(capsys, "check", path)[0] == 0
    devices = read(path).pipeline.num_devices
    plan = jp.plan(read(path), f"{devices}xH100", alternatives=0)
    assert plan.fits and plan.parameters == PUBLISHED[name]


@pytest.mark.parametrize("name", ["small", *CLUSTERS])
def test_the_whole_step_is_traced_abstractly(name):
    config = small(tensor=2, zero=1) if name == "small" else read(CONFIGS / f"{name}.yaml")
    pipeline = config.pipeline
    mesh = described_mesh(CHIPS["H100"], pipeline.ranks, pipeline.data, pipeline.tensor)
    engine, batch = build_engine(config, mesh), abstract_batch(config)
    state = engine.abstract_state(batch)
    after, metrics = jax.eval_shape(engine.train_batch, state, batch)
    shapes = lambda tree: [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]
    assert shapes(after) == shapes(state) and metrics["loss"].shape == ()
    rows = [x.sharding.shard_shape(x.shape) for x in jax.tree.leaves(state.params)]
    held = sum(4 * jax.numpy.prod(jax.numpy.array(row, float)) for row in rows)
    assert float(held) == pytest.approx(engine.memory(batch).parameters, rel=1e-6)


def test_the_command_says_whether_it_fits(tmp_path, capsys):
    path = tmp_path / "x.yaml"
    path.write_text(
        "model: {layers: 2, width: 16, heads: 2}\npipeline: {ranks: 2, microbatches: 2}\n"
        "data: {sequence_length: 16}\ntrainer: {batch_size: 2}\n"
    )
    code, out, err = ended(capsys, "plan", str(path), "--devices", "2xA100")
    assert (code, err) == (0, "") and out.startswith("fits: ")
    options = ["--devices", "1xA100", "--alternatives", "0"]
    code, out, _ = ended(capsys, "plan", str(path), *options)
    assert code == 2 and out.startswith("DOES NOT FIT")
