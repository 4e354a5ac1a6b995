"""Checkpoints: what is saved comes back, and what does not fit is refused by name."""

import json
import os
import re
import subprocess
import sys
import threading
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from children import environment

import jaxpipe as jp
from jaxpipe.checkpoint import Checkpoints
from jaxpipe.errors import CheckpointError

BATCH = {"inputs": np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)}


def an_engine(pipe: int = 2, width: int = 4, layers: int = 5, **settings: Any) -> jp.Engine:
    model = jp.PipelineModule(
        [*[jp.LayerSpec(nn.Dense, width)] * (layers - 1), jp.LayerSpec(nn.Dense, 2, name="head")],
        lambda y, batch: jnp.mean(y**2),
    )
    given = dict(optimizer=optax.adam(1e-2), num_microbatches=2)
    return jp.initialize(model, mesh=jp.make_mesh(pipe=pipe), **given | settings)  # type: ignore[arg-type]


def a_state(engine: jp.Engine, seed: int = 0, steps: int = 1) -> jp.TrainState:
    state = engine.init(jax.random.key(seed), BATCH)
    for _ in range(steps):
        state, _ = engine.train_batch(state, BATCH)
    return state


def plain(engine: jp.Engine, state: jp.TrainState) -> Any:
    """Everything in a state, on the host."""
    trees = engine.logical(state.params), engine.logical(state.opt_state)  # type: ignore[arg-type]
    return jax.tree.map(np.array, (*trees, state.step, state.key, state.skipped))


def test_a_state_comes_back_bit_by_bit_where_it_was(tmp_path):
    engine = an_engine()
    state = a_state(engine, seed=7, steps=2)
    want = plain(engine, state)
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(2, state)
    with Checkpoints(tmp_path / "c") as checkpoints:
        restored = checkpoints.restore(2, engine.abstract_state(BATCH))
    chex.assert_trees_all_equal(plain(engine, restored), want)
    shardings = lambda tree: [x.sharding for x in jax.tree.leaves(tree)]
    assert shardings(restored) == shardings(engine.abstract_state(BATCH))
    engine.train_batch(restored, BATCH)


def test_any_tree_of_arrays_comes_back(tmp_path):
    tree = {
        "floats": [jnp.full((2, 3), x, t) for x, t in ((0.1, jnp.float32), (2, jnp.bfloat16))],
        "numbers": (np.arange(5, dtype=np.int64), np.bool_(True), np.float16(0.5)),
        "zeros": jnp.zeros((3, 1)), "none": None, "empty": jnp.ones((0, 4)),
    }  # fmt: skip
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(0, tree)
        like = jax.tree.map(lambda x: (x * 0).astype(x.dtype), tree)
        found = checkpoints.restore(0, like)
    chex.assert_trees_all_equal(found, tree)
    chex.assert_trees_all_equal_dtypes(found, tree)


def test_a_state_may_change_while_it_is_saved(tmp_path):
    engine = an_engine()
    state = a_state(engine)
    want = plain(engine, state)
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, state)
        for _ in range(3):
            state, _ = engine.train_batch(state, BATCH)  # takes the buffers
        checkpoints.wait()
        found = checkpoints.restore(1, engine.abstract_state(BATCH))
    chex.assert_trees_all_equal(plain(engine, found), want)


def test_orbax_reads_it_by_itself(tmp_path):
    engine = an_engine(layers=4)
    state = a_state(engine)
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, state)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_zarr3=True, use_ocdbt=False)) as reader:
        path = tmp_path / "c" / "step_00000001" / "state"
        as_numpy = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
            reader.metadata(path).item_metadata.tree,
        )
        tree = reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    layers = engine.logical(state.params).items()
    kernels = np.stack([layer["kernel"] for name, layer in layers if name != "head"])
    np.testing.assert_array_equal(tree["params"]["Dense"]["kernel"], kernels)


# Which stay


def ones(step: int = 1) -> dict[str, jax.Array]:
    return {"w": jnp.full(2, step)}


def test_the_newest_are_kept(tmp_path):
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        assert (checkpoints.steps(), checkpoints.latest()) == ([], None)
        for step in (10, 20, 30):
            checkpoints.save(step, ones())
        checkpoints.wait()
        assert (checkpoints.steps(), checkpoints.latest()) == ([20, 30], 30)
        assert checkpoints.path(30).is_dir()
        assert not checkpoints.path(10).exists()


def test_those_of_an_interval_and_the_best_are_kept_too(tmp_path):
    losses = [5.0, 1.0, 4.0, 3.0, float("nan"), 2.0, 6.0]
    with Checkpoints(tmp_path / "c", keep=2, keep_interval=3, keep_best=1) as checkpoints:
        for step, loss in enumerate(losses, 1):
            checkpoints.save(step, ones(), metric=loss, metadata={"of": step})
        checkpoints.wait()
        assert checkpoints.steps() == [2, 3, 6, 7]
        assert checkpoints.manifest(2).metadata == {"metric": 1.0, "of": 2}


@pytest.mark.parametrize(
    "settings", [dict(keep=1), dict(keep=0), dict(keep_best=-1), dict(keep_interval=0)]
)
def test_settings_that_make_no_sense_are_refused(tmp_path, settings):
    with pytest.raises(CheckpointError, match="expected at least"):
        Checkpoints(tmp_path / "c", **settings)


def test_a_step_that_is_there_is_not_overwritten(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, ones(1))
        checkpoints.save(1, ones(2))
        chex.assert_trees_all_equal(checkpoints.restore(1, ones(3)), ones(1))


def test_other_names_in_the_folder_are_no_checkpoints(tmp_path):
    folder = tmp_path / "c"
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, ones())
    for name in ("50", "step_51", "step_00000052.old", "notes"):
        (folder / name).mkdir()
    (folder / "step_00000060").write_text("a file")
    (folder / "step_00000080").symlink_to(folder / "step_00000001")
    (folder / "step_00000090").mkdir()  # never finished
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.open() == [folder / "step_00000090"]
        assert checkpoints.steps() == [1]
        assert checkpoints.newest() == (1, [])
    assert (folder / "notes").is_dir() and not (folder / "step_00000052.old").exists()


# What does not fit


def test_a_state_that_does_not_fit_is_refused_leaf_by_leaf(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, {"a": {"w": jnp.ones((4, 3))}, "b": jnp.ones(2), "gone": jnp.ones(1)})
    with Checkpoints(tmp_path / "c") as checkpoints, pytest.raises(CheckpointError) as caught:
        checkpoints.restore(
            1, {"a": {"w": jnp.ones((3, 4))}, "b": jnp.ones(2, int), "new": jnp.ones(1)}
        )
    message = str(caught.value)
    assert "a.w: saved float32 (4, 3), expected float32 (3, 4)" in message
    assert "b: saved float32 (2,), expected int32 (2,)" in message
    assert "gone: saved float32 (1,), expected nothing" in message
    assert "new: saved nothing, expected float32 (1,)" in message


def test_another_optimizer_is_refused_and_can_be_left_out(tmp_path):
    adam, lion = an_engine(), an_engine(optimizer=optax.lion(1e-3))
    state = a_state(adam)
    fresh = a_state(lion, seed=3, steps=1)
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, state)
        with pytest.raises(CheckpointError, match=r"opt_state\.0\.nu\.00_Dense\.bias: saved"):
            checkpoints.restore(1, lion.abstract_state(BATCH))
        # Moments that both have are read.
        found = checkpoints.restore(1, fresh, partial=["opt_state.*.nu.*"])
        params = checkpoints.restore(1, lion.abstract_state(BATCH).params, part="params")
    chex.assert_trees_all_equal(lion.logical(found.params), adam.logical(state.params))
    chex.assert_trees_all_equal(lion.logical(params), adam.logical(state.params))
    mean = lambda engine, state: optax.tree.get(engine.logical(state.opt_state), "mu")
    chex.assert_trees_all_equal(mean(lion, found), mean(adam, state))


def test_layers_that_need_not_fit_keep_what_they_have(tmp_path):
    small, large = an_engine(layers=5), an_engine(pipe=4, layers=7)
    state, fresh = a_state(small), a_state(large, seed=9)
    mine = large.logical(fresh.params)
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, state)
        with pytest.raises(CheckpointError, match=r"05_Dense\.bias: saved nothing, expected"):
            checkpoints.restore(1, fresh.params, part="params")
        new = ["04_*", "05_*"]
        with pytest.raises(CheckpointError, match=r"is not read, and `like` is abstract there"):
            abstract = large.abstract_state(BATCH).params
            checkpoints.restore(1, abstract, part="params", partial=new)
        found = checkpoints.restore(1, fresh.params, part="params", partial=new)
    want = small.logical(state.params) | {name: mine[name] for name in ("04_Dense", "05_Dense")}
    chex.assert_trees_all_equal(large.logical(found), want)


def test_floats_are_cast_on_request_only(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, {"w": jnp.full(2, 1 / 3), "n": jnp.arange(2)})
        like = {"w": jnp.zeros(2, jnp.bfloat16), "n": jnp.arange(2)}
        with pytest.raises(CheckpointError, match=r"w: saved float32 \(2,\), expected bfloat16"):
            checkpoints.restore(1, like)
        found = checkpoints.restore(1, like, cast=True)
        chex.assert_trees_all_equal(found["w"], jnp.full(2, 1 / 3, jnp.bfloat16))
        with pytest.raises(CheckpointError, match=r"n: saved int32 \(2,\), expected float32"):
            checkpoints.restore(1, {"w": like["w"], "n": jnp.zeros(2)}, cast=True)


def test_long_lists_of_what_does_not_fit_are_cut(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, [jnp.ones(1)] * 20)
        checkpoints.wait()
        with pytest.raises(CheckpointError, match="and 12 more"):
            checkpoints.restore(1, [jnp.ones(2)] * 20)


def test_a_step_that_is_not_there_is_refused(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(5, ones())
        with pytest.raises(CheckpointError, match=r"no checkpoint of step 6 .* known: \[5\]"):
            checkpoints.restore(6, ones())


def test_what_cannot_be_saved_is_said_at_once(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, ones())
        with pytest.raises(CheckpointError, match="w is object; expected an array"):
            checkpoints.save(2, {"w": object()})
        checkpoints.wait()
        assert checkpoints.steps() == [1]


# Who may write


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    checkpoints = Checkpoints(tmp_path / "file" / "c")
    with checkpoints, pytest.raises(CheckpointError, match="cannot be written to"):
        checkpoints.open()


def test_a_second_writer_is_refused_until_the_first_has_gone(tmp_path):
    code = (
        "import sys, time; from jaxpipe.checkpoint import Checkpoints;"
        f"c = Checkpoints({str(tmp_path / 'c')!r}); c.open(); print('open', flush=True);"
        "time.sleep(100)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment()
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "open\n"
        with Checkpoints(tmp_path / "c") as checkpoints:
            with pytest.raises(CheckpointError, match=f'"pid": {other.pid}'):
                checkpoints.save(1, ones())
            assert checkpoints.newest() == (None, [])  # reading is free
            other.kill()  # it says no farewell
            other.wait()
            checkpoints.save(1, ones())
    assert json.loads((tmp_path / "c" / "lock").read_text())["pid"] == os.getpid()


def test_a_checkpoint_is_there_when_its_manifest_is(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, ones())
        checkpoints.wait()
        (checkpoints.path(1) / "MANIFEST.json").rename(tmp_path / "elsewhere")
        assert checkpoints.steps() == []
        with pytest.raises(CheckpointError, match=r"no checkpoint of step 1 .* known: none"):
            checkpoints.restore(1, ones())
        assert threading.active_count() < 20
        assert re.match("step_0+1", checkpoints.path(1).name)
