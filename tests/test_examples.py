"""The examples: each runs, learns, and gives what the model gives without a pipeline."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from jaxpipe.config import read
from jaxpipe.data import read_arrays

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_two_unlike_stages_denoise_as_the_plain_model_does(capsys):
    example: Any = load("01_mlp_two_stages")
    example.STEPS = 14  # of 30: it has learnt enough by then
    result = example.main()
    assert result.last_loss < 0.25 * result.first_loss
    assert result.last_loss == pytest.approx(result.plain_loss, rel=1e-3)
    assert "rank 1 | .  F0 B0" in capsys.readouterr().out


def test_a_convolutional_net_reads_digits(capsys):
    result = load("02_digits_convnet").main()
    assert result.test_accuracy > 0.9
    assert result.boundaries == (0, 2, 4, 6)
    assert "Flatten, Dense" in capsys.readouterr().out


def test_ones_own_train_step_learns(capsys):
    result = load("03_own_train_step").main()
    assert result.last_loss < 0.25 * result.first_loss
    assert result.last_loss == pytest.approx(result.plain_loss, rel=1e-5)
    assert result.last_loss < result.averaged_loss < result.first_loss
    assert result.gradient_norm > 0
    assert "gradient norm" in capsys.readouterr().out


def test_digits_become_arrays_that_a_configuration_trains_on(tmp_path):
    arrays = read_arrays(load("digits_to_arrays").main(tmp_path / "data" / "digits.npz"))
    assert len(arrays.training) + len(arrays.held_out) == 1797 and arrays.num_classes == 10
    inputs = arrays.training.fields["inputs"]
    assert inputs.shape[1:] == (8, 8) and (inputs.min(), inputs.max()) == (0, 1)
    config = read(EXAMPLES.parent / "configs" / "vit-digits.yaml")
    assert (config.data.source, config.data.path) == ("arrays", "data/digits.npz")


def test_all_are_short_and_tested():
    examples = sorted(EXAMPLES.glob("*.py"))
    tested = Path(__file__).read_text()
    assert len(examples) == 4
    for example in examples:
        assert f'load("{example.stem}")' in tested
        assert len(example.read_text().splitlines()) <= 70
