"""Names in checkpoints: of layers and leaves, each its own, none of stages."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxpipe as jp
from jaxpipe.checkpoint.contents import contents_of
from jaxpipe.checkpoint.names import word
from jaxpipe.errors import CheckpointError


class Pair(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(x.shape[-1])(nn.Dense(8)(x))


def state_of(layers, **settings):
    model = jp.PipelineModule(layers, lambda y, batch: jnp.mean(y**2))
    batch = {"inputs": jnp.ones((4, 4))}
    engine = jp.initialize(
        model, mesh=jp.make_mesh(pipe=2), optimizer=optax.adam(0.1), num_microbatches=2, **settings
    )
    return engine.abstract_state(batch)


def arrays_of(state):
    return {
        a.name: (a.whole_shape, tuple(m.layer for m in a.members))
        for a in contents_of(state).arrays
    }


def test_layers_that_are_alike_are_one_array_in_the_models_order():
    found = arrays_of(state_of([jp.LayerSpec(nn.Dense, 4)] * 12))
    shape, layers = found["params.Dense.kernel"]
    assert shape == (12, 4, 4)
    assert layers == tuple(f"{i:02d}_Dense" for i in range(12))
    assert found["opt_state.0.mu.Dense.bias"][0] == (12, 4)
    assert found["opt_state.0.count"] == ((), (None,))
    assert found["step"][0] == ()


def test_layers_of_other_shapes_have_arrays_of_their_own():
    widths = (4, 6, 4, 6, 4)
    found = arrays_of(state_of([*[jp.LayerSpec(nn.Dense, w) for w in widths], jp.LayerSpec(Pair)]))
    kernels = {
        name: of for name, of in found.items() if name.endswith("kernel") and "params" in name
    }
    assert {name: shape for name, (shape, _) in kernels.items()} == {
        "params.Dense.kernel": (1, 4, 4),
        "params.Dense-2.kernel": (2, 4, 6),
        "params.Dense-3.kernel": (2, 6, 4),
        "params.Pair.Dense_0.kernel": (1, 8, 4),
        "params.Pair.Dense_1.kernel": (1, 4, 8),
    }
    assert kernels["params.Dense-2.kernel"][1] == ("01_Dense", "03_Dense")


def test_names_of_ones_own_are_kept_apart():
    layers = [jp.LayerSpec(nn.Dense, 4, name=name) for name in ("a.b", "a-b", "a_b", "b.10", "b.9")]
    found = contents_of(state_of(layers).params)
    keys = [m.key for a in found.arrays for m in a.members if a.name.endswith("bias")]
    assert sorted(keys) == sorted(
        ["a%2Eb.bias", "a-b.bias", "a_b.bias", "b%2E9.bias", "b%2E10.bias"]
    )
    assert [m.layer for m in arrays(found)["b.bias"].members] == ["b.9", "b.10"]


def arrays(contents):
    return {array.name: array for array in contents.arrays}


def test_ties_are_there_once():
    layers = [
        jp.TiedLayerSpec("table", nn.Dense, 4),
        jp.LayerSpec(nn.Dense, 4),
        jp.TiedLayerSpec("table", nn.Dense, 4),
    ]
    assert arrays_of(state_of(layers))["params.Dense.kernel"][0] == (1 + 1, 4, 4)


def test_contents_do_not_depend_on_the_pipeline():
    layers = [jp.LayerSpec(nn.Dense, 4)] * 8
    schedules = [{}, dict(schedule="interleaved"), dict(schedule="zb-v")]
    first, *others = [arrays_of(state_of(layers, **settings)) for settings in schedules]
    assert all(other == first for other in others)


@given(st.lists(st.text(), min_size=2, max_size=2, unique=True))
def test_no_two_keys_make_one_word(keys):
    words = [word(jax.tree_util.DictKey(key)) for key in keys]
    assert words[0] != words[1]
    assert all(w and not set(w) & set("./\\\0") for w in words)


def test_names_that_would_be_one_are_refused():
    clash = {"a": {0: np.zeros(1), "0": np.zeros(1)}}
    with pytest.raises((CheckpointError, TypeError, ValueError)):
        contents_of(clash)


def test_names_that_are_no_files_are_refused():
    deep = np.zeros(1)
    for _ in range(130):
        deep = {"a": deep}
    for state in (deep, {"a": {"x" * 300: np.zeros(1)}}):
        with pytest.raises(CheckpointError, match=r"has (259|302) characters, expected at most"):
            contents_of(state)


@pytest.mark.parametrize("leaf", ["a word", object()])
def test_what_is_no_array_is_refused(leaf):
    with pytest.raises(CheckpointError, match=r"a\.b is .*expected an array"):
        contents_of({"a": {"b": leaf}})


def test_keys_are_saved_as_their_data():
    with pytest.raises(CheckpointError, match=r"jax.random.key_data"):
        contents_of({"key": jax.random.key(0)})
