"""Training on every source, with real files and a real engine; and going on elsewhere."""

import dataclasses
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pretended import a_config, after, lines_of, losses_of, saved_steps, trained
from some_files import written

from jaxpipe import cli
from jaxpipe.config import (
    Config,
    DataConfig,
    MetricsConfig,
    ModelConfig,
    OptimizerConfig,
    PipelineConfig,
    RunConfig,
    TrainerConfig,
    read,
)
from jaxpipe.data import write_tokens
from jaxpipe.errors import ConfigError, DataError
from jaxpipe.metrics import PlainConsole
from jaxpipe.trainer import Outcome, run

TEXTS = [f"def f{i}(x):\n    return x + {i**3}\n" * 4 for i in range(40)]


def a_source(folder: Path, source: str) -> dict[str, Any]:
    """Real files, and what a configuration says of them."""
    if source == "synthetic":
        return {"vocab_size": 99}
    if source == "tokens":
        write_tokens(folder, [np.arange(i % 50 + 2) for i in range(40)], 300)
    elif source == "arrays":
        folder.mkdir()
        images = np.random.default_rng(0).uniform(0, 100, (40, 4, 4)).astype(np.float16)
        np.save(folder / "inputs.npy", images)
        np.save(folder / "targets.npy", np.arange(40) % 3)
    else:
        written(folder, source, TEXTS)
    return {"path": str(folder)}


SOURCES = (
    "text",
    "jsonl",
    "parquet",
    "arrayrecord",
    "huggingface",
    "tokens",
    "synthetic",
    "arrays",
)


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_is_trained_on_and_gone_on_with(tmp_path, source):
    data: Any = a_source(tmp_path / "x", source)
    data |= dict(source=source, held_out_fraction=0.3, sequence_length=16)
    named = lambda name: dataclasses.replace(a_config(tmp_path, name), data=DataConfig(**data))
    whole, _ = trained(named("whole"))
    assert whole.ending == "finished" and np.isfinite(whole.held_out_loss)
    answers = iter([False] * 2 + [True] * 9)
    cut, _ = trained(named("cut"), should_stop=lambda: next(answers))
    assert cut.ending == "interrupted"
    trained(named("cut"))
    assert losses_of(named("cut")) == losses_of(named("whole"))
    assert saved_steps(named("cut"))[-1] == 8


def test_other_tokens_are_refused_and_damaged_ones_too(tmp_path):
    data: Any = a_source(tmp_path / "x", "tokens") | dict(source="tokens", sequence_length=16)
    config = dataclasses.replace(a_config(tmp_path, steps=2), data=DataConfig(**data))
    trained(config)
    longer = dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, steps=3))
    path = tmp_path / "x" / "tokens.bin"
    whole = path.read_bytes()
    path.write_bytes(bytes([whole[0] ^ 1, *whole[1:]]))
    with pytest.raises(DataError, match=r"x/tokens\.bin is not as it was written"):
        trained(longer)
    others = [np.arange(i % 50 + 2) for i in range(40)]
    others[7][0] = 1
    write_tokens(tmp_path / "x", others, 300)
    assert len(path.read_bytes()) == len(whole)
    with pytest.raises(ConfigError, match=r"data\.fingerprint: \w+ -> \w+"):
        trained(longer)
    a_source(tmp_path / "x", "tokens")
    assert trained(longer)[0].step == 3


@pytest.mark.parametrize("command", ["check", "train"])
def test_packages_that_are_not_installed_are_missed_at_once(tmp_path, command, monkeypatch, capsys):
    (tmp_path / "x.yaml").write_text("data: {source: parquet, path: x, tokenizer: t.json}\n")
    for package in ("pyarrow", "tokenizers"):
        monkeypatch.setitem(sys.modules, package, None)  # importing it fails
    assert cli.main([command, str(tmp_path / "x.yaml")]) == 2
    said = capsys.readouterr().err
    for field, package in (("source", "pyarrow"), ("tokenizer", "tokenizers")):
        assert f"data.{field}: got" in said and f"the package {package} is not installed" in said
    assert said.count("pip install 'jaxpipe[data]'") == 2


def a_real_run(tmp_path, name: str, **settings: Any) -> tuple[Config, Outcome, str]:
    """Trains a tiny GPT on subwords."""
    data: Any = dict(
        source="jsonl", path=str(tmp_path / "x"), held_out_fraction=0.3, sequence_length=16,
        tokenizer="train", vocab_size=300,
    )  # fmt: skip
    pipeline: Any = dict(ranks=2, microbatches=2)
    trainer: Any = dict(
        steps=6, batch_size=4, log_interval=1, eval_batches=2, checkpoint_interval=3
    )
    stop = settings.pop("stop", None)
    config = Config(
        model=ModelConfig(layers=1, width=16, heads=2, **settings.pop("model", {})),
        data=DataConfig(**(data | settings.pop("data", {}))),
        optimizer=OptimizerConfig(warmup_steps=1),
        pipeline=PipelineConfig(**(pipeline | settings.pop("pipeline", {}))),
        trainer=TrainerConfig(**(trainer | settings)),
        metrics=MetricsConfig(timeline=False),
        run=RunConfig(name=name, directory=str(tmp_path / "runs")),
    )
    stream = io.StringIO()
    should_stop = (lambda: False) if stop is None else after(stop)
    outcome = run(config, console=PlainConsole(6, stream), should_stop=should_stop)
    return config, outcome, stream.getvalue()


def test_a_run_goes_on_with_other_stages_where_its_data_were(tmp_path):
    written(tmp_path / "x", "jsonl", TEXTS)
    packed = {"packing": "packed"}
    whole, outcome, printed = a_real_run(tmp_path, "whole", data=packed)
    assert outcome.ending == "finished" and outcome.bigram_loss is None
    assert "learning 300 subwords" in printed and "vocabulary" in printed
    _, cut, _ = a_real_run(tmp_path, "cut", data=packed, stop=2)
    assert (cut.ending, cut.step) == ("interrupted", 2)
    config, done, printed = a_real_run(
        tmp_path, "cut", data=packed, pipeline=dict(ranks=1, schedule="gpipe", microbatches=4)
    )
    assert done.ending == "finished" and "changed: pipeline.ranks: 2 -> 1" in printed
    want, found = losses_of(whole), losses_of(config)
    assert list(found) == list(range(1, 7))
    for step in range(1, 7):
        assert found[step] == pytest.approx(want[step], rel=1e-5)
    assert done.held_out_loss == pytest.approx(outcome.held_out_loss, rel=1e-5)


@pytest.mark.slow
def test_samples_with_room_to_spare_weigh_what_they_hold(tmp_path):
    written(tmp_path / "x", "jsonl", TEXTS)
    _, outcome, _ = a_real_run(
        tmp_path, "padded", data={"packing": "padded"}, model={"network": "llama"}, steps=2
    )
    assert outcome.ending == "finished" and np.isfinite(outcome.held_out_loss)


def test_images_are_classified_and_other_images_refused(tmp_path):
    data = a_source(tmp_path / "x", "arrays") | dict(source="arrays", held_out_fraction=0.3)
    data |= dict(tokenizer="bytes", vocab_size=None)
    model = dict(network="vit", patch_size=2, pooling="mean")
    config, outcome, printed = a_real_run(tmp_path, "vit", data=data, model=model, steps=2)
    assert outcome.ending == "finished" and outcome.bigram_loss is None
    assert outcome.held_out_accuracy is not None
    assert f"held-out accuracy {outcome.held_out_accuracy:.1%}" in printed
    last = lines_of(config)[-1]
    assert last["held_out_accuracy"] == outcome.held_out_accuracy
    assert "samples_per_second" in lines_of(config)[-2] and "3 classes" in printed
    kept = read(Path(config.run.directory) / "vit" / "config.yaml")
    assert kept.model.classes == 3 and kept.model.vocab_size is None
    with pytest.raises(ConfigError, match=r"model\.classes: got 2, expected room .* 3 classes"):
        a_real_run(tmp_path, "few", data=data, model=model | dict(classes=2))
    np.save(tmp_path / "x" / "targets.npy", np.arange(40) % 2)
    with pytest.raises(ConfigError, match=r"data\.fingerprint: "):
        a_real_run(tmp_path, "vit", data=data, model=model, steps=3)


def test_a_model_with_too_little_room_for_ids_is_refused(tmp_path):
    written(tmp_path / "x", "jsonl", TEXTS)
    bytes_only = {"tokenizer": "bytes", "vocab_size": None}
    with pytest.raises(ConfigError, match=r"model\.vocab_size: got 200, expected room .* 256"):
        a_real_run(tmp_path, "small", data=bytes_only, model={"vocab_size": 200})
