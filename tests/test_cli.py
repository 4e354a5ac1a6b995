"""The command line: what it prints, what it refuses, and how it ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jaxpipe import cli
from jaxpipe.config import Config
from jaxpipe.schedules.names import by_name
from jaxpipe.simulate_devices import simulate_devices

REPOSITORY = Path(__file__).parents[1]


def ended(capsys, *argv):
    """Exit code, output and errors of a command line."""
    try:
        code = cli.main(argv)
    except SystemExit as exit:
        code = exit.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_draw_prints_the_schedule(capsys):
    code, out, err = ended(capsys, "draw", "1f1b", "--ranks", "3", "--microbatches", "5")
    assert (code, err) == (0, "")
    assert out == f"{by_name('1f1b', 3, 5)}\n"


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["draw", "1f1"], "did you mean '1f1b'?"),
        (["draw", "gpipe", "--ranks", "0"], "0"),
        (["train", "none.yaml"], "none.yaml"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_message(capsys, argv, part):
    code, out, err = ended(capsys, *argv)
    assert (code, out) == (2, "")
    assert err.startswith("jaxpipe: error: ")
    assert part in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        ([], "{train, draw}"),
        (["draw"], "NAME"),
        (["draw", "1f1b", "--ranks", "x"], "--ranks"),
        (["train", "x.yaml", "--trainer.step", "3"], "--trainer.steps"),
        (["train", "x.yaml", "--resume", "perhaps"], "auto"),
    ],
)
def test_a_wrong_command_line_is_explained(capsys, argv, part):
    code, _, err = ended(capsys, *argv)
    assert code == 2
    assert part in err.replace("STR", "NAME")


@pytest.mark.parametrize(
    ("argv", "example"),
    [
        (["train", "--help"], "jaxpipe train configs/gpt-stdlib.yaml --trainer.steps 50"),
        (["draw", "--help"], "jaxpipe draw 1f1b --ranks 4 --microbatches 8"),
    ],
)
def test_help_has_an_example_that_is_a_command(capsys, argv, example):
    code, out, _ = ended(capsys, *argv)
    assert code == 0
    assert example in " ".join(out.split())
    if example.startswith("jaxpipe draw"):
        assert ended(capsys, *example.split()[1:])[0] == 0


def test_every_field_has_an_option_with_help(capsys):
    _, out, _ = ended(capsys, "train", "--help")
    for component, fields in vars(Config()).items():
        for field in vars(fields):
            assert f"--{component}.{field.replace('_', '-')} " in out


def test_version(capsys):
    code, out, _ = ended(capsys, "--version")
    assert code == 0
    assert out.startswith("jaxpipe ")


@pytest.fixture
def trained(monkeypatch):
    """The configurations that were about to be trained."""
    calls = []
    monkeypatch.setattr(cli, "_train", lambda config, resume: calls.append((config, resume)) or 0)
    return calls


def test_options_come_on_top_of_the_file_and_the_file_on_top_of_defaults(tmp_path, trained):
    (tmp_path / "x.yaml").write_text("trainer: {steps: 5, seed: 9}\noptimizer: {clip_norm: null}\n")
    options = ["--trainer.steps", "6", "--pipeline.partition", "0", "5", "10", "--resume", "must"]
    assert cli.main(["train", *options, str(tmp_path / "x.yaml")]) == 0
    [(config, resume)] = trained
    assert (config.trainer.steps, config.trainer.seed) == (6, 9)
    assert config.trainer.batch_size == Config().trainer.batch_size
    assert config.optimizer.clip_norm is None
    assert config.pipeline.partition == (0, 5, 10)
    assert resume == "must"


def test_dashes_and_underscores_are_alike(tmp_path, trained):
    (tmp_path / "x.yaml").write_text("")
    for option in ("--trainer.batch-size", "--trainer.batch_size"):
        assert cli.main(["train", str(tmp_path / "x.yaml"), option, "64"]) == 0
    assert [config.trainer.batch_size for config, _ in trained] == [64, 64]


def test_mistakes_are_found_before_anything_starts(tmp_path, capsys):
    (tmp_path / "x.yaml").write_text("trainer: {batch_size: 30}\nmodel: {width: 100}\n")
    code, _, err = ended(capsys, "train", str(tmp_path / "x.yaml"), "--model.heads", "8")
    assert code == 2
    assert "try 24 or 32" in err
    assert "try width 96 or 104" in err


def test_the_first_signal_asks_and_the_second_interrupts(capfd):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), cli._stop_signals() as should_stop:
        assert not should_stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert should_stop()
        assert "stopping after this step" in capfd.readouterr().err
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


PRINT_DEVICES = (
    "from jaxpipe.simulate_devices import simulate_devices; import jax, os; simulate_devices(3)\n"
    "print(len(jax.devices()), os.environ['XLA_FLAGS'])"
)


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({}, "3"),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=5"}, "5"),
        ({"JAX_NUM_CPU_DEVICES": "4"}, "4"),
        ({"XLA_FLAGS": "--xla_cpu_collective_call_terminate_timeout_seconds=77"}, "3"),
    ],
)
def test_devices_are_simulated_unless_the_user_has_chosen(chosen, expected):
    environment = {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu", "PATH": ""} | chosen
    command = [sys.executable, "-c", PRINT_DEVICES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    count, *flags = done.stdout.split()
    assert count == expected
    timeouts = [flag for flag in flags if "terminate_timeout" in flag]
    wanted = 77 if "77" in chosen.get("XLA_FLAGS", "") else 600
    assert timeouts == [f"--xla_cpu_collective_call_terminate_timeout_seconds={wanted}"]


def test_devices_that_were_chosen_for_the_tests_stay(monkeypatch):
    flags = os.environ["XLA_FLAGS"]
    monkeypatch.setenv("XLA_FLAGS", flags)
    simulate_devices(3)
    assert os.environ["XLA_FLAGS"].split() == flags.split()


def test_a_reader_that_leaves_early_is_no_error():
    environment = {"PYTHONPATH": str(REPOSITORY), "PATH": os.environ["PATH"]}
    command = f"{sys.executable} -m jaxpipe draw gpipe --microbatches 2000 | head -c 10"
    done = subprocess.run(
        command, shell=True, env=environment, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("gpipe: 4 r", "")
