"""`jaxpipe inspect` and `jaxpipe verify`: what they show, and their exit codes."""

from collections.abc import Iterator
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpipe as jp
from jaxpipe import cli


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("run")
    layers = [jp.LayerSpec(nn.Dense, 4)] * 11
    model = jp.PipelineModule(layers, lambda y, batch: jnp.mean(y**2))
    batch = {"inputs": np.ones((4, 4), np.float32)}
    engine = jp.initialize(
        model, mesh=jp.make_mesh(pipe=2), optimizer=optax.adam(0.1), num_microbatches=2
    )
    state = engine.init(jax.random.key(0), batch)
    with jp.Checkpoints(folder / "checkpoints") as checkpoints:
        for step in (9, 10):
            about = {"schedule": "1f1b", "versions": {"Python": "3"}}
            checkpoints.save(step, state, metric=2.5, metadata=about)
    yield folder


def test_inspect_shows_layers_and_what_wrote_them(run, capsys):
    newest = run / "checkpoints" / "step_00000010"
    for path in (run, run / "checkpoints", newest):
        assert cli.main(["inspect", str(path)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == str(newest)
        assert lines[1].startswith("step 10, ") and lines[1].endswith(" bytes")
        assert lines[2:5] == ["schedule: 1f1b", "metric: 2.5", "Python: 3"]
        rows = [line.split() for line in lines if "_Dense" in line]
        # 20 float32, and Adam's two moments of them.
        assert rows == [
            ["│", f"{i:02d}_Dense", *["│", "20", "│", "80", "│", "160", "│"]] for i in range(11)
        ]
        assert lines[-1].startswith("no file is missing")


def test_verify_reads_every_byte(run, capsys):
    assert cli.main(["verify", str(run)]) == 0
    steps = [run / "checkpoints" / f"step_{step:08d}" for step in (9, 10)]
    assert capsys.readouterr().out.splitlines() == [f"{step}: sound" for step in steps]
    chunk = steps[1] / "state" / "params.Dense.kernel" / "c.3.0.0"
    before = chunk.read_bytes()
    chunk.write_bytes(bytes([before[0] ^ 1]) + before[1:])
    assert cli.main(["inspect", str(run)]) == 0  # it reads none of them
    capsys.readouterr()
    assert cli.main(["verify", str(run)]) == 1
    out = capsys.readouterr().out
    assert f"{steps[1]}: DAMAGED:\n  state/params.Dense.kernel/c.3.0.0: is not as it was" in out
    chunk.write_bytes(before[1:])
    assert cli.main(["inspect", str(steps[1])]) == 1
    assert "c.3.0.0: has 67 bytes, expected 68" in capsys.readouterr().out
    chunk.write_bytes(before)


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_what_is_no_checkpoint_is_refused(tmp_path, capsys, command):
    assert cli.main([command, str(tmp_path)]) == 2
    assert "is no checkpoint, and there is none below it" in capsys.readouterr().err
