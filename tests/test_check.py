"""`jaxpipe check`: what can run, what cannot, what fields mean; and what an import costs."""

import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_cli import ended

import jaxpipe
from jaxpipe.config import Config, by_field, explain
from jaxpipe.errors import ConfigError

REPOSITORY = Path(__file__).parents[1]
SHIPPED = str(REPOSITORY / "configs" / "gpt-stdlib.yaml")


def test_what_can_run_is_described(capsys):
    code, out, err = ended(capsys, "check", SHIPPED, "--pipeline.schedule", "zb-h1")
    assert (code, err) == (0, "")
    assert "can run" in out and "devices: 4 (pipe 4 x data 1 x tensor 1)" in out
    assert "schedule: zb-h1, 4 stages, 8 microbatches, bubble" in out
    assert "tokens: 1,024 a step, 1,024,000 in all" in out
    assert out.endswith("not as by default:\n  pipeline.schedule: 1f1b -> zb-h1\n")
    assert ended(capsys, "check", SHIPPED)[1].endswith("defaults: all\n")


def test_all_that_is_wrong_is_listed(capsys, tmp_path):
    options = ["--trainer.steps", "0", "--pipeline.tensor", "3", "--data.source", "parquet"]
    code, out, err = ended(capsys, "check", SHIPPED, *options)
    assert (code, out) == (2, "")
    for part in ("trainer.steps: got 0", "pipeline.tensor: got 3", "data.path: got null"):
        assert part in err


def test_what_cannot_be_read_and_what_cannot_run_are_one_list_with_their_places(capsys, tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text(
        "model: {heads: 3, widht: 9}\noptimizer:\n  warmup_steps: 2000\n  beta1: 2\n"
        "pipeline:\n  ranks: 99\n  tensor: 2\ntrainer: {steps: ten, seed: -1}\n"
    )
    code, out, err = ended(capsys, "check", str(file), "--metrics.heartbeat", "0")
    assert (code, out) == (2, "")
    problems = err.removeprefix("jaxpipe: error: ").splitlines()
    # Not that 3 heads do not divide the default width, nor that 2000 is more than default steps.
    assert [problem.split(": ")[:2] for problem in problems] == [
        [f"{file}:1", "unknown key 'model.widht'; did you mean 'width'? Known"],
        [f"{file}:4", "optimizer.beta1"],
        [f"{file}:6", "pipeline.ranks"],
        [f"{file}:7", "pipeline.tensor"],
        [f"{file}:8", "trainer.seed"],
        [f"{file}:8", "trainer.steps"],
        ["option --metrics.heartbeat", "got 0.0, expected more than 0."],
        ["What a field means", f"jaxpipe check {file} --explain FIELD"],
    ]
    code, out, err = ended(capsys, "check", str(file), "--explain", "trainer.steps")
    assert (code, err) == (0, "") and out.startswith("trainer.steps: int = 1000\n")


def test_what_does_not_fit_together_has_the_place_of_what_was_set(capsys, tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("\nmodel:\n  heads: 5\n")
    _, _, err = ended(capsys, "check", str(file))
    assert f"{file}:3: model.width: got 128, which 5 heads do not divide" in err
    _, _, err = ended(capsys, "check", str(file), "--model.heads", "7")
    assert "option --model.heads: model.width: got 128, which 7 heads do not divide" in err


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("modell: {width: 64}", "--model.heads=7"),
        ("model: 3", "--model.heads=7"),
        ("model: {width: wide}", "--model.heads=7"),
        ("pipeline: {microbatch: 3}", "--trainer.batch-size=12"),
        ("pipeline: {microbatches: 8, microbatches: 3}", "--trainer.batch-size=12"),
    ],
)
def test_what_may_only_follow_from_what_cannot_be_read_is_not_told(capsys, text, option, tmp_path):
    for name, words in {"x.yaml": text, "y.yaml": ""}.items():
        (tmp_path / name).write_text(words)
        code, _, err = ended(capsys, "check", str(tmp_path / name), option)
        problem, advice = err.splitlines()
        assert code == 2 and advice.startswith("What a field means: ")
        assert ("x.yaml:1: " in problem) == (name == "x.yaml")


def test_every_option_that_cannot_be_read_is_told_with_what_the_file_has_wrong(capsys, tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("trainer: {batch_size: 30}\nmodel: {width: 102}\noptimizer: {nmae: lion}\n")
    options = ["--trainer.stps", "3", "--trainer.seed=x", "--pipeline.ranks", "2", "--model.heads"]
    code, out, err = ended(capsys, "check", str(file), *options, "y")
    assert (code, out) == (2, "")
    for part in ("--trainer.stps, 3", "--trainer.seed: invalid", "--model.heads: invalid"):
        assert err.count(part) == 1
    assert err.count("Value error") == 2 and f"{file}:3: unknown key 'optimizer.nmae'" in err
    # What the options meant may have mended these.
    assert "batch_size: got" not in err and "width: got" not in err
    _, _, err = ended(capsys, "check", str(file), "--optimizer.weight-decay", "x")
    assert "parsing --optimizer.weight-decay" in err
    assert "batch_size: got 30" in err and "width: got 102" in err
    # Commands without a configuration tell all of theirs; else it is told as it is.
    _, _, err = ended(capsys, "draw", "1f1b", "--ranks", "x", "--microbatches", "y")
    assert "--ranks: " in err and "--microbatches: " in err
    for line, part in {"": "Missing subcommand", "chek": "chek", "check": "CONFIG"}.items():
        code, _, err = ended(capsys, *line.split())
        assert code == 2 and part in err and err.count("full helptext") == 1


def looked_up(path: str) -> Any:
    """What a program that writes this dotted name has, where a module may have its name too."""
    found: Any = jaxpipe
    place, *names = path.split(".")
    for name in names:
        place += f".{name}"
        found = getattr(found, name) if hasattr(found, name) else importlib.import_module(place)
    return found


def test_every_field_is_explained(capsys):
    for name in by_field(Config()):
        text = explain(name, Config())
        assert text.startswith(f"{name}: ") and len(text.splitlines()[1]) > 14
        for counterpart in text.rsplit("In Python: ", 1)[1].split(", "):
            path, _, parameter = counterpart.removesuffix(")").partition("(")
            taken = looked_up(path)
            assert callable(taken) or path.removeprefix("jaxpipe.Engine.") in jaxpipe.Engine._fields
            assert not parameter or parameter in inspect.signature(taken).parameters, counterpart
    code, out, _ = ended(
        capsys, "check", SHIPPED, "--pipeline.zero", "2", "--explain", "pipeline.zero"
    )
    assert code == 0 and out.startswith("pipeline.zero: int = 0, here 2\n    What copies share")
    assert explain("seed", Config()) == explain("trainer.seed", Config())
    fields = [name for name in by_field(Config()) if name.startswith("data.")]
    assert explain("data", Config()).count("\n    A run that goes on keeps it.") == len(fields)
    assert "\n    A run that goes on may change it.\n" in explain("trainer.steps", Config())
    with pytest.raises(ConfigError, match=r"did you mean 'pipeline\.zero' or "):
        explain("pipeline.zeros", Config())


def alone(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": "", "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_front_door_opens_rooms_when_they_are_asked_for():
    heavy = "[n for n in ('jax', 'flax', 'optax', 'orbax', 'tensorstore') if n in sys.modules]"
    assert alone(f"import sys, jaxpipe; print({heavy})") == "[]\n"
    check = f"from jaxpipe.cli import main; main(['check', {SHIPPED!r}])"
    assert alone(f"import sys; {check}; print({heavy})").endswith("[]\n")
    # No backend has started: the number of devices can still be chosen.
    assert alone(
        "import jax, jaxpipe as jp; jp.PipelineModule, jp.Checkpoints, jp.nn, jp.losses;"
        "jax.config.update('jax_num_cpu_devices', 3); print(len(jax.devices('cpu')))"
    ).endswith("3\n")


def test_the_front_door_has_what_it_says():
    source = Path(jaxpipe.__file__).read_text()
    typed = {line.split(" as ")[1] for line in source.splitlines() if line.startswith("    from ")}
    assert typed == set(jaxpipe._HOMES)
    for name in typed:
        assert getattr(jaxpipe, name) is not None and name in dir(jaxpipe)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        jaxpipe.nothing  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
