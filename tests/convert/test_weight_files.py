"""Weights in other libraries' files, and back: every number, every name, and nothing else."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import jaxpipe as jp
from jaxpipe import cli, nn
from jaxpipe.checkpoint import Leaves
from jaxpipe.convert import read_huggingface, write_huggingface, write_tensors
from jaxpipe.convert.rules import fused_qkv, split_qkv
from jaxpipe.errors import CheckpointError, ConvertError
from jaxpipe.models import GPTConfig, LlamaConfig, gpt, llama

SIZES: dict[str, Any] = dict(vocab_size=24, width=16, num_layers=3, num_heads=4)
MODELS = {
    "gpt": (gpt, GPTConfig(**SIZES, sequence_length=8)),
    "gpt tied": (gpt, GPTConfig(**SIZES, sequence_length=8, tied=True, norm_eps=1e-5)),
    "llama": (llama, LlamaConfig(**SIZES, num_kv_heads=2, hidden=20, rotary_theta=50.0)),
    "llama tied": (llama, LlamaConfig(**SIZES, num_kv_heads=4, hidden=20, tied=True)),
}
# Of both families, and of both ends, one.
every_model = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("gpt tied", "llama") else pytest.mark.slow)
        for name in MODELS
    ],
)
ids = np.random.default_rng(0).integers(0, 16, (4, 9), np.int32)
BATCH = dict(inputs=ids[:, :-1], targets=ids[:, 1:])


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Callable[[str], tuple[Path, Any]]:
    """A checkpoint of a model on two ranks, which is only read, and its parameters."""

    @functools.cache
    def make_once(name: str) -> tuple[Path, Any]:
        make, config = MODELS[name]
        model = jp.PipelineModule(make(config), nn.cross_entropy)
        engine = jp.initialize(
            model, mesh=jp.make_mesh(pipe=2), optimizer=optax.adam(0.1), num_microbatches=2
        )
        engine.partition(BATCH)
        init = jax.jit(functools.partial(model.init, batch=BATCH))
        params = jax.tree.map(moved, init(jax.random.key(0)))
        with jp.Checkpoints(tmp_path_factory.mktemp(name.replace(" ", "_"))) as checkpoints:
            checkpoints.save(1, {"params": engine.place(params)})
            path = checkpoints.path(1)
        return path, params

    return make_once


def moved(leaf: Any) -> np.ndarray:
    """Numbers that differ, where fresh ones may all be 0 or 1."""
    steps = np.arange(leaf.size, dtype=np.float32).reshape(leaf.shape)
    return np.asarray(leaf) + steps * np.float32(1e-3)


@every_model
def test_a_model_that_is_written_and_read_is_the_same(saved, tmp_path, name):
    path, params = saved(name)
    make, config = MODELS[name]
    write_huggingface(Leaves(path), config, tmp_path / "hf")
    found = read_huggingface(tmp_path / "hf")
    assert found.config == config
    # From these files onto another mesh, by way of a checkpoint.
    model = jp.PipelineModule(make(config), nn.cross_entropy)
    engine = jp.initialize(model, mesh=jp.make_mesh(pipe=3), num_microbatches=2)
    with jp.Checkpoints(tmp_path / "back") as checkpoints:
        checkpoints.save(0, {"params": found.params})
        checkpoints.wait()
        assert checkpoints.failures() == []
        like = engine.abstract_state(BATCH).params
        placed = checkpoints.restore(0, like, part="params")
        shapes = {n: e.shape for n, e in checkpoints.manifest(0).arrays.items() if "Block" in n}
    assert all(shape[0] == 3 for shape in shapes.values())
    jax.tree.map(np.testing.assert_array_equal, engine.logical(placed), params)


@every_model
def test_there_is_a_file_for_each_layer_and_an_index(saved, tmp_path, name):
    path, params = saved(name)
    write_huggingface(Leaves(path), MODELS[name][1], tmp_path / "hf", dtype="bfloat16")
    content = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "hf").glob("*.safetensors"))
    assert len(files) == len(params)
    tensors = {}
    for file in files:
        with safe_open(file, framework="np") as opened:
            assert opened.metadata() == {"format": "pt"}
            for tensor in opened.keys():  # noqa: SIM118
                assert content["weight_map"][tensor] == file.name
                tensors[tensor] = opened.get_tensor(tensor)
    assert tensors.keys() == content["weight_map"].keys()
    assert {str(x.dtype) for x in tensors.values()} == {"bfloat16"}
    assert content["metadata"]["total_size"] == sum(x.nbytes for x in tensors.values())
    assert sum(x.size for x in tensors.values()) == sum(x.size for x in jax.tree.leaves(params))


@every_model
def test_room_for_more_ids_comes_and_goes(saved, tmp_path, name):
    path, _ = saved(name)
    config = MODELS[name][1]
    write_huggingface(Leaves(path), config, tmp_path / "fewer", vocab_size=21)
    assert json.loads((tmp_path / "fewer" / "config.json").read_text())["vocab_size"] == 21
    found = read_huggingface(tmp_path / "fewer", vocab_size=32)
    assert found.config.vocab_size == 32
    with jp.Checkpoints(tmp_path / "more") as checkpoints:
        checkpoints.save(0, {"params": found.params})
        wide = checkpoints.path(0)
    leaves = Leaves(wide)
    table = next(leaves[key] for key in leaves if key.endswith(("embedding", "token")))
    assert table.shape == (32, 16) and np.all(table[21:] == 0) and np.all(table[:21] != 0)
    write_huggingface(leaves, found.config, tmp_path / "again", vocab_size=21)
    for file in (tmp_path / "fewer").glob("*.safetensors"):
        before, after = load_file(file), load_file(tmp_path / "again" / file.name)
        jax.tree.map(np.testing.assert_array_equal, after, before)
    with pytest.raises(ConvertError, match="vocab_size=20; the files have 21 ids"):
        read_huggingface(tmp_path / "fewer", vocab_size=20)
    with pytest.raises(ConvertError, match="vocab_size=99; the model has 32 ids"):
        write_huggingface(leaves, found.config, tmp_path / "x", vocab_size=99)


def test_queries_keys_and_values_are_grouped_by_heads_of_keys():
    q, k, v = (np.arange(n)[None] + start for n, start in ((8, 0), (4, 100), (4, 200)))
    fused = fused_qkv([q, k, v], kv_heads=2, features=2)
    assert fused.tolist() == [[0, 1, 2, 3, 100, 101, 200, 201, 4, 5, 6, 7, 102, 103, 202, 203]]
    for back, want in zip(split_qkv(fused, 2, 2), (q, k, v), strict=True):
        np.testing.assert_array_equal(back, want)


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    path, _ = saved("llama")
    write_huggingface(Leaves(path), MODELS["llama"][1], tmp_path / "hf")
    return tmp_path / "hf"


def changed(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(model_type="mamba"), "cannot convert 'mamba'.*'gpt2', 'llama'"),
        (dict(hidden_act="gelu"), "hidden_act = 'gelu'; expected 'silu'"),
        (dict(attention_bias=True), "attention_bias = True; expected False"),
        (dict(head_dim=8), "head_dim = 8; expected 4"),
        (dict(rope_parameters=dict(rope_type="llama3", rope_theta=5.0)), "rope_type = 'llama3'"),
        (dict(num_hidden_layers=4), r"missing model\.layers\.3\.input_layernorm\.weight"),
        (dict(num_hidden_layers=2), r"extra model\.layers\.2\.input_layernorm\.weight"),
    ],
)
def test_models_that_are_not_ours_are_refused(folder, changes, message):
    changed(folder, **changes)
    with pytest.raises(ConvertError, match=message):
        read_huggingface(folder)


def test_files_of_another_model_are_found_when_they_are_read(folder, tmp_path):
    changed(folder, intermediate_size=24)
    found = read_huggingface(folder)
    message = "config.json is of another model than the files. Older checkpoints: none"
    with (
        pytest.raises(CheckpointError, match=message),
        jp.Checkpoints(tmp_path / "back") as checkpoints,
    ):
        checkpoints.save(0, {"params": found.params})


def test_names_without_their_beginning_and_masks_are_read(folder):
    tensors = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
        file.unlink()
    (folder / "model.safetensors.index.json").unlink()
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    bare["layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.float32)
    save_file(bare, folder / "model.safetensors")
    found = read_huggingface(folder)
    got = np.asarray(found.params.layers["00_Embedding"]["embedding"])
    np.testing.assert_array_equal(got, tensors["model.embed_tokens.weight"])


def test_pickles_are_not_read(folder):
    for file in folder.glob("model*"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(ConvertError, match=r"has no file model.safetensors.* they may run code"):
        read_huggingface(folder)


def test_a_folder_that_holds_something_is_not_written_to(saved, folder, tmp_path):
    path, _ = saved("llama")
    with pytest.raises(ConvertError, match="is not empty"):
        write_huggingface(Leaves(path), MODELS["llama"][1], folder)
    with pytest.raises(ConvertError, match=r"missing .*params\.00_Embed\.token.* extra params\.0"):
        write_huggingface(Leaves(path), MODELS["gpt"][1], tmp_path / "other")


def test_the_command_line_goes_there_and_back(saved, tmp_path, capsys):
    path, params = saved("gpt tied")
    hf, out = str(tmp_path / "hf"), str(tmp_path / "out")
    assert cli.main(["export", str(path), "--to", "huggingface", "--out", hf]) == 2
    assert "does not say which model it is of" in capsys.readouterr().err
    assert cli.main(["export", str(path.parent), "--to", "safetensors", "--out", out]) == 0
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == len(params)
    write_huggingface(Leaves(path), MODELS["gpt tied"][1], tmp_path / "hf")
    back = str(tmp_path / "back")
    assert cli.main(["import", hf, "--out", back, "--vocab-size", "32"]) == 0
    assert "GPTConfig(vocab_size=32, width=16" in capsys.readouterr().out
    again = str(tmp_path / "again")
    command = ["export", back, "--to", "huggingface", "--out", again, "--vocab-size", "24"]
    assert cli.main(command) == 0
    for file in (tmp_path / "hf").glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


def test_parameters_can_be_written_under_their_own_names(saved, tmp_path):
    path, params = saved("gpt")
    write_tensors(Leaves(path), tmp_path / "out")
    found = {}
    for file in (tmp_path / "out").glob("*.safetensors"):
        found |= load_file(file)
    flat = {
        ".".join(key.key for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    assert found.keys() == flat.keys()
    jax.tree.map(np.testing.assert_array_equal, found, flat)
