"""Signals: the first asks, the second ends, whatever the main thread is in."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from children import environment

from jaxpipe import cli, trainer
from jaxpipe.signals import SIGNALS, stop_signals
from jaxpipe.trainer.outcome import Outcome

REPOSITORY = Path(__file__).parents[1]


def test_the_first_signal_asks_and_the_second_interrupts(capfd):
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(KeyboardInterrupt), stop_signals() as asked:
        assert not asked
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked == [signal.SIGTERM]
        assert "stopping after this step" in capfd.readouterr().err
        os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_slurms_warning_is_one_of_them(capfd):
    with stop_signals() as asked:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert asked == [signal.SIGUSR1]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 0), (signal.SIGUSR1, 0), (signal.SIGINT, 130)]
)
def test_exit_codes_tell_who_asked(monkeypatch, capsys, number, code):
    def run(config, *, should_stop, **_):
        assert not should_stop()
        os.kill(os.getpid(), number)
        assert should_stop()
        return Outcome("interrupted", 3, Path("the checkpoint"), 0.0, None)

    monkeypatch.setattr(trainer, "run", run)
    assert cli.main(["train", str(REPOSITORY / "configs" / "gpt-stdlib.yaml")]) == code
    assert "the same command goes on from the checkpoint" in capsys.readouterr().out


DEAF = """
import hashlib
from jaxpipe.signals import stop_signals
with stop_signals(patience=0.3):
    print("deaf", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes, in C
"""


def test_the_second_also_ends_what_hears_of_no_signal():
    command = [sys.executable, "-c", DEAF]
    how = dict(env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen(command, **how) as process:  # pyright: ignore[reportCallIssue, reportArgumentType]
        assert process.stdout and process.stdout.readline() == "deaf\n"
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGUSR1)  # at the same time: the same one
        time.sleep(1.5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "ending at once" in err
