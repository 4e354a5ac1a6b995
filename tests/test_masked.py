"""Targets that do not count: some, all of a microbatch, all of a batch; and a step done twice."""

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from zoo import largest_error

import jaxpipe as jp
from jaxpipe.batch import IGNORED


@pytest.fixture(scope="module")
def engine() -> jp.Engine:
    embed = jp.LayerSpec(nn.Embed, 16, 8)
    layers = [embed, jp.LayerSpec(nn.Dense, 8), jp.LayerSpec(nn.Dense, 16)]
    model = jp.PipelineModule(
        layers, jp.losses.cross_entropy, id_ranges=dict(inputs=(0, 16), targets=(0, 16))
    )
    engine = jp.initialize(
        model, mesh=jp.make_mesh(pipe=2, data=2), optimizer=optax.adam(1e-2), num_microbatches=4
    )
    return engine


def a_batch(*ignored: slice) -> dict[str, np.ndarray]:
    """16 rows: two for each of 4 microbatches of each of 2 data ranks."""
    ids = np.random.default_rng(0).integers(0, 16, (16, 6)).astype(np.int32)
    batch = dict(inputs=ids[:, :-1], targets=ids[:, 1:].copy())
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


def test_a_step_that_is_done_twice_gives_the_same_bits(engine):
    def done():
        state = engine.init(jax.random.key(0), a_batch())
        return jax.tree.map(np.asarray, engine.train_batch(state, a_batch(slice(3, 7))))

    jax.tree.map(np.testing.assert_array_equal, done(), done())
