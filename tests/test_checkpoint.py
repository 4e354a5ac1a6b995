"""Checkpoints: what is saved comes back, and what does not fit is refused by name."""

import dataclasses

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxpipe as jp
from jaxpipe.checkpoint import Checkpoints
from jaxpipe.errors import CheckpointError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    step: jax.Array
    params: dict
    opt_state: optax.OptState
    key: jax.Array


def a_state(width=3, seed=0, num_ranks=4):
    mesh = jax.make_mesh((num_ranks,), ("pipe",), axis_types=(AxisType.Auto,))
    key = jax.random.key(seed)
    params = {
        "block": jax.device_put(
            jax.random.normal(key, (4, width)), NamedSharding(mesh, PartitionSpec("pipe"))
        ),
        "head": (jnp.float32(seed), jnp.ones(width, jnp.bfloat16)),
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return State(jnp.int32(seed), params, optimizer.init(params), key)


def plain(state):
    return dataclasses.replace(state, key=jax.random.key_data(state.key))


def test_a_state_comes_back_bit_by_bit_where_it_was(tmp_path):
    state = a_state(seed=7)
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(7, state)
    with Checkpoints(tmp_path / "c") as checkpoints:
        restored = checkpoints.restore(7, a_state(seed=1))
    chex.assert_trees_all_equal(plain(restored), plain(state))
    chex.assert_trees_all_equal_dtypes(plain(restored), plain(state))
    assert restored.params["block"].sharding == state.params["block"].sharding
    assert jax.random.normal(restored.key) == jax.random.normal(state.key)


def test_a_state_can_come_back_on_other_devices(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, a_state(seed=3, num_ranks=4))
        restored = checkpoints.restore(1, a_state(num_ranks=2))
    assert len(restored.params["block"].sharding.device_set) == 2
    chex.assert_trees_all_equal(restored.params["block"], a_state(seed=3).params["block"])


def test_the_newest_are_kept(tmp_path):
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        assert (checkpoints.steps(), checkpoints.latest()) == ([], None)
        for step in (10, 20, 30):
            checkpoints.save(step, {"w": jnp.ones(2)})
        assert (checkpoints.steps(), checkpoints.latest()) == ([20, 30], 30)
        assert checkpoints.path(30).is_dir()
        assert not checkpoints.path(10).exists()


def test_a_step_that_is_there_is_not_overwritten(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, {"w": jnp.ones(2)})
        checkpoints.save(1, {"w": jnp.zeros(2)})
        chex.assert_trees_all_equal(checkpoints.restore(1, {"w": jnp.zeros(2)}), {"w": jnp.ones(2)})


def test_a_state_may_change_after_it_was_saved(tmp_path):
    double = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf * 2, state), donate_argnums=0)
    state = {"w": jnp.arange(1000.0)}
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, state)
        state = double(state)  # takes the buffers
        chex.assert_trees_all_equal(checkpoints.restore(1, state), {"w": jnp.arange(1000.0)})


def test_a_state_that_does_not_fit_is_refused_leaf_by_leaf(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, {"a": {"w": jnp.ones((4, 3))}, "b": jnp.ones(2), "gone": jnp.ones(1)})
    with Checkpoints(tmp_path / "c") as checkpoints, pytest.raises(CheckpointError) as caught:
        checkpoints.restore(
            1, {"a": {"w": jnp.ones((4, 5))}, "b": jnp.ones(2, int), "new": jnp.ones(1)}
        )
    message = str(caught.value)
    assert "a/w: saved float32 (4, 3), expected float32 (4, 5)" in message
    assert "b: saved float32 (2,), expected int32 (2,)" in message
    assert "gone: saved float32 (1,), expected nothing" in message
    assert "new: saved nothing, expected float32 (1,)" in message


def test_layers_in_other_places_are_refused_though_shapes_agree(tmp_path):
    layers = [jp.LayerSpec(nn.Dense, 4)] * 8
    model = jp.PipelineModule(layers, lambda y, batch: jnp.mean(y**2))
    batch = {"inputs": jnp.ones((4, 4))}
    settings = {"mesh": jp.make_mesh(pipe=2), "optimizer": optax.adam(1e-3), "num_microbatches": 2}
    names = ("1f1b", "interleaved", "zb-v", "zb-h1")
    engines = {name: jp.initialize(model, schedule=name, **settings) for name in names}
    state = engines["1f1b"].init(jax.random.key(0), batch)
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, state)
        for name in ("interleaved", "zb-v"):
            with pytest.raises(CheckpointError, match="lie on other ranks"):
                checkpoints.restore(1, engines[name].abstract_state(batch))
        restored = checkpoints.restore(1, engines["zb-h1"].abstract_state(batch))
    chex.assert_trees_all_equal(
        engines["zb-h1"].logical(restored.params), engines["1f1b"].logical(state.params)
    )


def test_long_lists_of_what_does_not_fit_are_cut(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, [jnp.ones(1)] * 20)
        with pytest.raises(CheckpointError, match="and 12 more"):
            checkpoints.restore(1, [jnp.ones(2)] * 20)


def test_a_step_that_is_not_there_is_refused(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(5, {"w": jnp.ones(2)})
        with pytest.raises(CheckpointError, match=r"no checkpoint of step 6 .* known: \[5\]"):
            checkpoints.restore(6, {"w": jnp.ones(2)})


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, {"w": jnp.ones(2)})
        with pytest.raises(
            CheckpointError, match=r"checkpoint of step 2 .* Older checkpoints: \[1\]"
        ):
            checkpoints.save(2, {"w": object()})
        assert checkpoints.steps() == [1]
