"""From another library's files into a run, which trains on from there, and back."""

import functools
import io
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml
from pretended import losses_of
from some_files import written

import jaxpipe as jp
from jaxpipe import cli, nn
from jaxpipe.checkpoint import Leaves, LogicalTree
from jaxpipe.config import Config, ModelConfig, by_field, parse, to_yaml
from jaxpipe.convert import read_huggingface, write_huggingface
from jaxpipe.data import train_subwords
from jaxpipe.errors import CheckpointError, ConfigError
from jaxpipe.metrics import PlainConsole
from jaxpipe.models import GPTConfig, LlamaConfig, gpt, llama
from jaxpipe.prepare import batches_of, dataset_of
from jaxpipe.pretrained import start_of
from jaxpipe.trainer import run

TEXTS = [f"def f{i}(x):\n    return x + {i**3}\n" * 4 for i in range(40)]
SIZES: dict[str, Any] = dict(vocab_size=300, width=16, num_layers=2, num_heads=2)
MODELS = {
    "gpt": (gpt, GPTConfig(**SIZES, sequence_length=24, tied=True, norm_eps=1e-5)),
    "llama": (llama, LlamaConfig(**SIZES, num_kv_heads=1, hidden=20, rotary_theta=500.0)),
}
ids = np.zeros((2, 8), np.int32)


def written_model(name: str, folder: Path) -> tuple[Any, dict[str, Any]]:
    """A random model as transformers has it, with a tokenizer; its sizes and parameters."""
    make, sizes = MODELS[name]
    model = jp.PipelineModule(make(sizes), nn.cross_entropy)
    init = jax.jit(functools.partial(model.init, batch=dict(inputs=ids, targets=ids)))
    params = jax.device_get(init(jax.random.key(7)))
    with jp.Checkpoints(folder / "checkpoint") as checkpoints:
        checkpoints.save(1, {"params": LogicalTree(params)})
        path = checkpoints.path(1)
    write_huggingface(Leaves(path), sizes, folder / "theirs")
    train_subwords(TEXTS, 300, folder / "theirs" / "tokenizer.json")
    return model, params


@pytest.mark.parametrize("name", [pytest.param("gpt", marks=pytest.mark.slow), "llama"])
def test_a_model_of_another_library_is_trained_on(tmp_path, capsys, name):
    model, params = written_model(name, tmp_path)
    imported, theirs = tmp_path / "imported", tmp_path / "theirs"
    assert cli.main(["import", str(theirs), "--out", str(imported)]) == 0
    lines = capsys.readouterr().out.split("set:\n\n")[1]  # what to say in a configuration
    written(tmp_path / "text", "jsonl", TEXTS)
    told = yaml.safe_load(lines)
    told["data"] |= dict(source="jsonl", path=str(tmp_path / "text"), held_out_fraction=0.3)
    told["data"] |= dict(sequence_length=16)
    told["pipeline"] = dict(ranks=2, microbatches=2)
    told["optimizer"] = dict(warmup_steps=1)
    told["trainer"] = dict(steps=3, batch_size=4, log_interval=1, eval_batches=1)
    told["metrics"] = dict(timeline=False)
    told["run"] = dict(name=name, directory=str(tmp_path / "runs"))
    config = parse(yaml.safe_dump(told))
    stream = io.StringIO()
    outcome = run(config, console=PlainConsole(3, stream))
    assert f"starting from the parameters in {imported}" in stream.getvalue()
    losses, batch = losses_of(config), batches_of(config, dataset_of(config))[1]
    assert losses[1] == pytest.approx(float(jax.jit(model.loss)(params, batch)), rel=1e-5)
    assert losses[3] < losses[1]
    # Back again, as a model of the same sizes whose numbers have moved.
    out = str(tmp_path / "back")
    assert cli.main(["export", str(outcome.checkpoint), "--to", "huggingface", "--out", out]) == 0
    before, after = read_huggingface(theirs), read_huggingface(tmp_path / "back")
    assert vars(after.config) == vars(before.config)
    moved = jax.tree.map(
        lambda a, b: bool(np.any(np.asarray(a) != np.asarray(b))), after.params.layers, params
    )
    assert np.mean(jax.tree.leaves(moved)) > 0.9


def test_a_model_of_other_sizes_is_refused_with_the_fields_to_set(tmp_path):
    sizes = MODELS["llama"][1]
    about = {"model": {"family": "llama", **vars(sizes)}}
    with jp.Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        checkpoints.save(1, {"params": LogicalTree({"a": {"b": np.zeros(2)}})}, metadata=about)
    start = str(tmp_path / "run")
    model = ModelConfig(network="llama", layers=2, width=32, heads=2, start_from=start)
    with pytest.raises(ConfigError) as error:
        start_of(Config(model=model))
    got = "the checkpoint in model.start_from has"
    assert str(error.value).splitlines() == [
        f"model.vocab_size: got 256, {got} 300.",
        f"model.width: got 32, {got} 16.",
        f"model.kv_heads: got 2, {got} 1.",
        f"model.hidden: got 96, {got} 20.",
        f"model.rotary_theta: got 10000.0, {got} 500.0.",
    ]
    with pytest.raises(ConfigError, match=f"model.network: got 'gpt', {got} 'llama'"):
        start_of(Config(model=ModelConfig(start_from=start)))
    with pytest.raises(CheckpointError, match="nothing is no checkpoint"):
        start_of(Config(model=ModelConfig(start_from=str(tmp_path / "nothing"))))
    assert start_of(Config()) is None and parse(to_yaml(Config(model=model))).model == model
    assert "model.start_from" in by_field(Config())
