"""Copies of a parameter: a single flipped bit in one of them is found, and where it is."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec
from pretended import a_config, losses_of, pretended, saved_steps, trained

import jaxpipe as jp
from jaxpipe.errors import CorruptStateError
from jaxpipe.replicas import Replicas, checksum


def flipped(array: jax.Array, device: int, word: int, bit: int) -> jax.Array:
    """The array with a flipped bit in what one device has of it."""
    parts = []
    for shard in array.addressable_shards:
        data = np.array(shard.data)
        if shard.device.id == device:
            bits = data.reshape(-1).view(f"u{data.itemsize}")
            bits[word % bits.size] ^= np.array(1 << bit % (8 * data.itemsize), bits.dtype)
        parts.append(jax.device_put(data, shard.device))
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, parts)


@pytest.mark.parametrize("zero", [0, 1])
def test_a_flipped_bit_of_one_copy_is_found_and_named(zero: int):
    mesh = jp.make_mesh(pipe=2, data=4)
    layers = [jp.LayerSpec(nn.Dense, 8) for _ in range(4)]
    model = jp.PipelineModule(layers, jp.losses.mean_squared_error)
    engine = jp.initialize(
        model, mesh=mesh, optimizer=optax.adam(1e-3), num_microbatches=2, zero=zero
    )
    x = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    batch = dict(inputs=x, targets=x)
    state = engine.init(jax.random.key(0), batch)
    state, _ = engine.train_batch(state, batch)
    replicas = Replicas(mesh)
    replicas.check(state)  # what is cut over data is no copy
    [buffer, *_] = jax.tree.leaves(state.params)
    device = mesh.devices[1, 2, 0]

    def harm(leaf: Any) -> Any:
        return flipped(leaf, device.id, 5, 3) if leaf is buffer else leaf

    harmed = jax.tree.map(harm, state)
    with pytest.raises(CorruptStateError, match="Go on from a checkpoint") as caught:
        replicas.check(harmed)
    assert caught.value.exit_code == 1
    [line] = replicas.differences(harmed)
    assert line.startswith("params/")
    assert f"pipe 1, data 2, tensor 0 (process 0, {device}) differs, of 4 copies" in line
    assert len(replicas._sums) == 1  # one program


def test_of_two_copies_nobody_knows_which_is_right():
    mesh = jp.make_mesh(pipe=4, data=2)
    array = jax.device_put(jnp.arange(8.0), NamedSharding(mesh, PartitionSpec("pipe")))
    found = Replicas(mesh).differences({"x": flipped(array, mesh.devices[3, 0, 0].id, 0, 31)})
    assert [line.split(" (")[0] for line in found] == [
        "x: pipe 3, data 0, tensor 0", "x: pipe 3, data 1, tensor 0",
    ]  # fmt: skip


@pytest.mark.parametrize("rollbacks", [0, 1])
def test_a_run_whose_copies_drift_apart_goes_back_or_ends_and_saves_none_of_it(
    tmp_path, text, rollbacks
):
    mesh = jp.make_mesh(data=2)
    everywhere = NamedSharding(mesh, PartitionSpec())
    engine: Any = pretended()
    steps = []

    def train_batch(state, batch):
        steps.append(int(state["step"]) + 1)
        state, metrics = engine.train_batch(state, batch)
        state = jax.device_put(state, everywhere)
        if steps.count(5) == 1 and steps[-1] == 5:
            device = mesh.devices.flat[1].id
            state |= {"total": flipped(state["total"], device, 0, 30)}
        return state, metrics

    as_placed = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere)
    harmed = engine._replace(
        mesh=mesh,
        train_batch=train_batch,
        init=lambda *arguments: jax.device_put(engine.init(*arguments), everywhere),
        abstract_state=lambda batch: jax.tree.map(as_placed, engine.abstract_state(batch)),
    )
    config = a_config(tmp_path, check_interval=3, rollbacks=rollbacks)
    if not rollbacks:
        with pytest.raises(CorruptStateError, match=r"total: pipe 0, data 0.*\n.*data 1"):
            trained(config, harmed)
        assert saved_steps(config) == [2, 4]
        assert steps == [1, 2, 3, 4, 5, 6]  # found after step 6, before it was saved
    outcome, printed = trained(config, harmed)
    assert outcome.ending == "finished" and ("ROLLED BACK: devices" in printed) == bool(rollbacks)
    sound = a_config(tmp_path, "sound")
    trained(sound)
    assert losses_of(config) == losses_of(sound)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["float32", "bfloat16", "int8", "uint32", "bool"]),
    st.integers(0, 99),
    st.integers(0, 31),
)
def test_every_flipped_bit_changes_the_sum(dtype: str, word: int, bit: int):
    array = jnp.asarray(np.random.default_rng(word).integers(0, 2, 100), dtype)
    bits = np.array(array).view(f"u{array.dtype.itemsize}")
    other = bits.copy()
    other[word] ^= np.array(1 if dtype == "bool" else 1 << bit % (8 * bits.itemsize), bits.dtype)
    as_was = other.view(np.bool_) if dtype == "bool" else other.view(array.dtype)
    assert int(checksum(array)) != int(checksum(jnp.asarray(as_was)))
