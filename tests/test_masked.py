"""Targets that do not count: some, all of a microbatch, all of a batch; and a step done twice."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from pretended import a_config, trained
from zoo import largest_error

import jaxpipe as jp
from jaxpipe.batch import IGNORED
from jaxpipe.checkpoint import Checkpoints
from jaxpipe.data import TokenSamples
from jaxpipe.errors import DataError, Diverged
from jaxpipe.prepare import batches_of, corpus_of
from jaxpipe.trainer.evaluate import evaluate, num_targets


@pytest.fixture(scope="module")
def engine() -> jp.Engine:
    embed = jp.LayerSpec(nn.Embed, 256, 8)
    layers = [embed, jp.LayerSpec(nn.Dense, 8), jp.LayerSpec(nn.Dense, 256)]
    model = jp.PipelineModule(
        layers, jp.losses.cross_entropy, id_ranges=dict(inputs=(0, 256), targets=(0, 256))
    )
    engine = jp.initialize(
        model, mesh=jp.make_mesh(pipe=2, data=2), optimizer=optax.adam(1e-2), num_microbatches=4
    )
    return engine


def a_batch(*ignored: slice) -> dict[str, np.ndarray]:
    """16 rows: two for each of 4 microbatches of each of 2 data ranks."""
    ids = np.random.default_rng(0).integers(0, 256, (16, 6)).astype(np.int32)
    batch: dict[str, np.ndarray] = dict(inputs=ids[:, :-1], targets=ids[:, 1:].copy())
    batch["weights"] = np.ones((16, 5), np.float32)
    for rows in ignored:
        batch["targets"][rows] = IGNORED
    return batch


def plain(params, batch):
    """The loss in plain JAX, of what counts and of nothing else."""
    x = params["00_Embed"]["embedding"][batch["inputs"]]
    for name in ("01_Dense", "02_Dense"):
        x = x @ params[name]["kernel"] + params[name]["bias"]
    counts = batch["targets"] != IGNORED
    rows = -jax.nn.log_softmax(x[counts])[np.arange(counts.sum()), batch["targets"][counts]]
    return rows.mean()


def test_microbatches_and_data_ranks_may_count_unequally_or_not_at_all(engine):
    # The second microbatch of data rank 0 has nothing, and the last row of data rank 1 two targets.
    batch = a_batch(slice(2, 4))
    batch["targets"][15, :3] = IGNORED
    state = engine.init(jax.random.key(0), batch)
    loss, grads = engine.value_and_grad(state.params, batch)
    params = jax.tree.map(np.asarray, engine.logical(state.params))
    want, want_grads = jax.value_and_grad(plain)(params, batch)
    np.testing.assert_allclose(loss, want, rtol=1e-6)
    assert largest_error(engine.logical(grads), want_grads) < 1e-6


def test_a_batch_of_nothing_changes_nothing(engine):
    state = engine.init(jax.random.key(0), a_batch())
    before = jax.tree.map(np.asarray, (state.params, state.opt_state))
    state, metrics = engine.train_batch(state, a_batch(slice(None)))
    assert (float(metrics["weight"]), int(metrics["skipped"])) == (0, 1)
    jax.tree.map(np.testing.assert_array_equal, (state.params, state.opt_state), before)
    state, metrics = engine.train_batch(state, a_batch())
    assert np.isfinite(metrics["loss"]) and int(metrics["skipped"]) == 0


def test_steps_that_are_skipped_leave_a_state_that_is_saved_when_they_end_the_run(
    tmp_path, text, engine
):
    config = a_config(
        tmp_path, most_skipped=2, checkpoint_interval=9, eval_interval=9, batch_size=16
    )
    config = replace(config, data=replace(config.data, sequence_length=5))
    seen: dict[int, Any] = {}

    def train_batch(state, batch):
        step = int(state.step) + 1
        bad = dict(weights=batch["weights"] * (np.nan if 3 < step < 7 else 1))
        state, metrics = engine.train_batch(state, dict(batch) | bad)
        seen[step] = jax.tree.map(np.asarray, state)
        return state, metrics

    with pytest.raises(Diverged, match=r"the loss of step 6 is nan, .* 2 steps .*step_00000003\."):
        trained(config, engine._replace(train_batch=train_batch))
    assert list(seen) == [1, 2, 3, 4, 5, 6] and int(seen[6].skipped) == 3
    same = np.testing.assert_array_equal
    jax.tree.map(same, (seen[6].params, seen[6].opt_state), (seen[3].params, seen[3].opt_state))
    like = engine.abstract_state(batches_of(config, corpus_of(config))[1])
    with Checkpoints(tmp_path / "runs" / "run" / "checkpoints") as checkpoints:
        assert checkpoints.steps() == [3]
        jax.tree.map(same, jax.tree.map(np.asarray, checkpoints.restore(3, like)), seen[3])
        metadata = checkpoints.manifest(3).metadata
    assert metadata["data"]["next_batch"] == 4 and metadata["metric"] > 0


def test_a_step_that_is_done_twice_gives_the_same_bits(engine):
    def done():
        state = engine.init(jax.random.key(0), a_batch())
        return jax.tree.map(np.asarray, engine.train_batch(state, a_batch(slice(3, 7))))

    jax.tree.map(np.testing.assert_array_equal, done(), done())


def test_held_out_batches_of_nothing_are_left_out():
    found: Any = [(math.nan, 0.0), (2.0, 30.0), (math.nan, 0.0), (4.0, 10.0)]
    told = lambda state, i: dict(loss=found[i][0], accuracy=found[i][0] / 8, weight=found[i][1])
    nothing: Any = None
    pretended: Any = SimpleNamespace(eval_batch=told)
    means: Any = lambda *batches: evaluate(pretended, nothing, batches)
    assert means(0, 1, 2, 3) == dict(loss=2.5, accuracy=2.5 / 8)
    with pytest.raises(DataError, match="got 2 held-out batches, and none of their targets counts"):
        means(0, 2)
    found[1] = (math.nan, 3.0)  # which counts, and is to be seen
    assert math.isnan(means(0, 1, 2, 3)["loss"])


def test_targets_that_count_are_counted():
    batch = dict(targets=np.array([[3, IGNORED], [5, 6]]))
    weighed = batch | dict(weights=np.array([[1.0, 1.0], [0.0, 2.0]]))
    assert (num_targets([batch]), num_targets([batch, weighed])) == (3, 5)
    with pytest.raises(DataError, match="Expected one at least"):
        num_targets([weighed | dict(weights=np.zeros((2, 2)))])


def test_held_out_data_without_a_target_that_counts_are_refused_at_the_start(
    tmp_path, text, monkeypatch
):
    read = TokenSamples.__getitem__
    nothing = lambda self, number: read(self, number) | dict(weights=np.zeros(16, np.float32))
    monkeypatch.setattr(TokenSamples, "__getitem__", nothing)
    with pytest.raises(DataError, match=r"data\.held_out_fraction"):
        trained(a_config(tmp_path))
