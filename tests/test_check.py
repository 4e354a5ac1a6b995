"""`jaxpipe check`: what can run, what cannot, what fields mean; and what an import costs."""

import subprocess
import sys
from pathlib import Path

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
    (tmp_path / "x.yaml").write_text("model:\n  heads: 3\n  widht: 9\n")
    code, _, err = ended(capsys, "check", str(tmp_path / "x.yaml"))
    assert code == 2 and "x.yaml:3" in err and "did you mean" in err


def test_every_field_is_explained(capsys):
    for name in by_field(Config()):
        text = explain(name, Config())
        assert text.startswith(f"{name}: ") and len(text.splitlines()[1]) > 14
    code, out, _ = ended(
        capsys, "check", SHIPPED, "--pipeline.zero", "2", "--explain", "pipeline.zero"
    )
    assert code == 0 and out.startswith("pipeline.zero: int = 0, here 2\n    What copies share")
    assert explain("seed", Config()) == explain("trainer.seed", Config())
    assert explain("data", Config()).count("\n    ") == len(
        [name for name in by_field(Config()) if name.startswith("data.")]
    )
    with pytest.raises(ConfigError, match=r"did you mean 'pipeline\.zero'"):
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
