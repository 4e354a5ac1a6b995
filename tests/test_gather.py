"""A rank's row is read bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxpipe as jp
from jaxpipe.gather import row, whole

VALUES = [np.nan, -0.0, 1e-40, np.inf]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int8, jnp.uint32, jnp.bool_])
@pytest.mark.parametrize("spec", [("pipe",), ("pipe", "data")])
def test_every_bit_comes(dtype, spec):
    floats = np.array([VALUES] * 4, np.float32)
    values = floats.view(np.uint32).astype(dtype) if dtype != jnp.float32 else floats
    mesh = jp.make_mesh(pipe=4, data=2)
    buffer = jax.device_put(values, NamedSharding(mesh, PartitionSpec(*spec)))
    for rank in range(4):
        assert row(buffer, rank).tobytes() == values[rank].tobytes()


def test_what_is_within_reach_stays_as_it_is():
    tree = {"a": jnp.ones(3), "b": np.zeros(2)}
    assert all(
        new is old for new, old in zip(*map(jax.tree.leaves, (whole(tree), tree)), strict=True)
    )
