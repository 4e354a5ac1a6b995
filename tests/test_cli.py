"""The command line: what it prints, what it refuses, and how it ends."""

import inspect
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from children import REPOSITORY, environment

from jaxpipe import cli
from jaxpipe.cli.main import COMMANDS
from jaxpipe.cli.train import Train
from jaxpipe.config import Config, RunConfig
from jaxpipe.errors import JaxpipeError
from jaxpipe.evaluation import evaluate_run
from jaxpipe.measurement import measure_steps
from jaxpipe.profiling import profile_steps
from jaxpipe.schedules import (
    NAMES,
    Costs,
    Lockstep,
    by_name,
    dump,
    parse_costs,
    pictures,
    simulate,
)
from jaxpipe.schedules.draw import text
from jaxpipe.simulate_devices import simulate_devices


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


@pytest.mark.parametrize("name", NAMES)
def test_draw_knows_all_names(capsys, name):
    assert ended(capsys, "draw", name) == (0, f"{by_name(name, 4, 8)}\n", "")


def test_draw_prints_several_at_the_costs_that_are_given(capsys):
    code, out, _ = ended(capsys, "draw", "1f1b", "gpipe", "--costs", "F=1,B=3,hop=.5")
    costs = Costs(B=3, hop=0.5)
    assert code == 0
    assert out == "\n\n".join(text(by_name(x, 4, 8), costs=costs) for x in ("1f1b", "gpipe")) + "\n"
    assert "at costs F=1 B=3 hop=0.5" in out


def test_draw_writes_what_the_ending_says(capsys, tmp_path):
    schedule = by_name("1f1b", 2, 3)
    ticks = [pictures.chart_of_ticks(schedule)]
    expected = {
        "svg": pictures.svg(ticks),
        "html": pictures.html(ticks),
        "json": pictures.trace(ticks),
        "txt": f"{schedule}\n",
        "schedule": dump(schedule),
    }
    options = ["--ranks", "2", "--microbatches", "3"]
    for ending, content in expected.items():
        path = tmp_path / f"x.{ending}"
        assert ended(capsys, "draw", "1f1b", *options, "--out", str(path)) == (0, "", "")
        assert path.read_text(encoding="utf-8") == content


def test_draw_on_an_axis_of_time(capsys, tmp_path):
    path = tmp_path / "x.svg"
    options = ["--costs", "F=1,B=3", "--time", "--lockstep", "all", "--out", str(path)]
    assert ended(capsys, "draw", "1f1b", *options)[0] == 0
    chart = pictures.chart_of_times(by_name("1f1b", 4, 8), Costs(B=3), Lockstep("all"))
    assert path.read_text(encoding="utf-8") == pictures.svg([chart])


def test_draw_reads_the_tables_that_it_writes(capsys, tmp_path):
    rows = str(by_name("1f1b", 4, 8)).splitlines()[1:]
    for name in ("1f1b.csv", "1f1b.schedule"):
        path = str(tmp_path / name)
        assert ended(capsys, "draw", "1f1b", "--out", path) == (0, "", "")
        code, out, err = ended(capsys, "draw", path)
        assert (code, err) == (0, "")
        assert out.splitlines()[1:] == rows


def test_no_file_is_overwritten_unless_asked_for(capsys, monkeypatch, tmp_path):
    kept = tmp_path / "x.svg"
    kept.write_text("mine")
    monkeypatch.chdir(REPOSITORY)
    for command in (["draw", "1f1b"], ["timeline", "configs/gpt-stdlib.yaml"]):
        code, out, err = ended(capsys, *command, "--out", str(kept))
        assert (code, out, kept.read_text()) == (2, "", "mine")
        assert "x.svg, which is there already" in err and "--overwrite" in err
    assert ended(capsys, "draw", "1f1b", "--out", str(kept), "--overwrite")[0] == 0
    assert kept.read_text().startswith("<svg")


class Enough(JaxpipeError):
    """Has been called."""


@pytest.mark.parametrize(
    ("function", "command"),
    [
        (evaluate_run, "eval"),
        (measure_steps, "timeline"),
        (profile_steps, "profile"),
    ],
)
def test_commands_that_compile_say_what_lasts(capsys, monkeypatch, tmp_path, function, command):
    def lasts(*args: Any, **how: Any) -> None:
        inspect.signature(function).bind(*args, **how)
        how["say"]("72 of 100 MB")
        with how["sections"].enter("compile", 1):
            time.sleep(0.2)
        raise Enough

    monkeypatch.setattr(sys.modules[function.__module__], function.__name__, lasts)
    (tmp_path / "config.yaml").write_text("metrics: {heartbeat: 0.05}")
    about = tmp_path if command == "eval" else tmp_path / "config.yaml"
    monkeypatch.chdir(tmp_path)
    code, out, err = ended(capsys, command, str(about))
    assert (code, out) == (2, "")
    assert err.startswith("72 of 100 MB\nstill tracing and compiling step 1, for 0 s\n")


def test_draw_compares_in_the_order_that_is_given(capsys, tmp_path):
    (tmp_path / "mine.csv").write_text("0F0,0F1,,0B0,,0B1\n,1F0,1B0,1F1,1B1,\n")
    names = ["gpipe", str(tmp_path / "mine.csv"), "1f1b"]
    code, out, _ = ended(capsys, "draw", "--compare", *names, "--ranks", "4", "--costs", "B=3")
    assert code == 0
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip()}
    assert list(rows)[2:-2] == ["gpipe", "mine", "1f1b"]
    timeline = simulate(by_name("gpipe", 4, 8), Costs(B=3))
    assert rows["gpipe"][:4] == ["4", "4", "8", "22"]
    assert rows["gpipe"][4:6] == [f"{timeline.makespan:g}", f"{timeline.bubble_fraction:.1%}"]
    assert rows["gpipe"][6:] == ["8", "8", "8", "8"]
    assert rows["mine"][:4] == ["2", "2", "2", "6"]


def test_schedules_beside_each_other_have_as_much_work(capsys, tmp_path):
    names = ["1f1b", "interleaved"]
    _, out, _ = ended(capsys, "draw", "--compare", *names, "--costs", "F=1,B=3,hop=0.5")
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip()}
    timeline = simulate(by_name("interleaved", 4, 8), Costs(F=0.5, B=1.5, hop=0.5))
    assert rows["interleaved"][4:6] == [
        f"{timeline.makespan:g}",
        f"{timeline.bubble_fraction:.1%}",
    ]
    assert rows["interleaved"][6:] == [f"{held / 2:g}" for held in timeline.held]
    assert ended(capsys, "draw", *names, "--time", "--out", str(tmp_path / "x.svg"))[0] == 0
    picture = (tmp_path / "x.svg").read_text(encoding="utf-8")
    assert "F=1 B=2" in picture and "F=0.5 B=1" in picture
    assert "F=1 B=2" in ended(capsys, "draw", "interleaved")[1]


def test_draw_searches_for_auto(capsys):
    options = ["--costs", "F=1,I=1.2,W=0.8", "--memory", "5", "--ranks", "3", "--microbatches", "6"]
    code, out, err = ended(capsys, "draw", "--compare", "1f1b", "zb-h1", "zb-v", "auto", *options)
    assert (code, err) == (0, "")
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip()}
    makespan = {name: float(rows[name][4]) for name in ("1f1b", "zb-h1", "zb-v", "auto")}
    assert makespan["auto"] == min(makespan.values())
    assert max(map(float, rows["auto"][6:])) <= 5
    _, out, _ = ended(capsys, "draw", "auto", "--chunks", "1", "--ranks", "3")
    assert out.startswith("auto: zb-h1: 3 ranks, 3 stages")  # a family is as fast as can be
    for costs in ("F=1:2:1,B=2:4:2,I=1,W=1", "F=1:1:1:2:1:1"):
        drawn = ended(capsys, "draw", "auto", "--ranks", "3", "--costs", costs)
        assert drawn[0] == 0, drawn
    code, out, _ = ended(capsys, "draw", "auto", "--chunks", "1", *options)
    assert code == 0 and "3 ranks, 3 stages, 6 microbatches" in out


def test_timeline_draws_measured_beside_simulated(tmp_path):
    (tmp_path / "x.yaml").write_text(TINY)
    (tmp_path / "text").mkdir()
    for number in range(40):
        (tmp_path / "text" / f"{number}.py").write_text(f"x = {number}\n" * 40)
    options = ["--out", "x.json", "--metrics.heartbeat", "0.5"]
    command = [sys.executable, "-m", "jaxpipe", "timeline", "x.yaml", *options]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()
    assert any(line.startswith("still tracing and compiling step 1, for ") for line in said)
    assert [line for line in said if not line.startswith("still ")] == []
    first, second, costs, _ = done.stdout.splitlines()
    assert "simulated, " in first and "measured, " in second
    parse_costs(costs.removeprefix("costs in ms: "))
    names = {
        event["name"] for event in json.loads((tmp_path / "x.json").read_text())["traceEvents"]
    }
    assert {str(action) for action in by_name("zb-h1", 2, 2).ticks()} <= names


TINY = """
model: {layers: 1, width: 16, heads: 2}
data: {path: text, pattern: '*.py', sequence_length: 16, held_out_fraction: 0.5}
optimizer: {warmup_steps: 1}
pipeline: {ranks: 2, microbatches: 2, schedule: zb-h1}
trainer: {steps: 2, batch_size: 2}
"""


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("0F0,0B0,,\n,1F0,,1B0", "rank 0, tick 1: 0B0 needs 1B0"),
        ("0F0,,,0B0\n,1F0,,", "stage 1 runs microbatch 0 as F; expected FB or FIW"),
    ],
)
def test_a_wrong_schedule_is_drawn_with_the_cell(capsys, tmp_path, text, part):
    rows = zip(range(2), text.split("\n"), strict=True)
    cells = [f"rank {rank}: {' '.join(c or '.' for c in row.split(','))}" for rank, row in rows]
    header = "schedule: wrong\nplacement: 0 1\nnum_microbatches: 1\nlatency: 0\n"
    (tmp_path / "wrong.schedule").write_text(header + "\n".join(cells))
    (tmp_path / "wrong.csv").write_text("0F0,,,0B0\n,1F0,,\n")
    for name in ("wrong.schedule", "wrong.csv"):
        picture = str(tmp_path / "x.svg")
        code, out, err = ended(capsys, "draw", str(tmp_path / name), "--out", picture)
        assert (code, out) == (1, "")
        assert err.startswith(f"jaxpipe: {tmp_path / name} is wrong: rank ")
        assert "<-- here" in err
        assert not Path(picture).exists()
        if name == "wrong.schedule":
            assert part in err


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["draw", "1f1"], "did you mean '1f1b'?"),
        (["draw", "gpipe", "--ranks", "0"], "0"),
        (["draw"], "expected a NAME or a FILE"),
        (["draw", "none.csv"], "none.csv"),
        (["draw", "none.csv", "--ranks", "3"], "files say how many ranks"),
        (["draw", "gpipe", "--out", "x.png"], "ends in .svg, .html, .json, .txt, .csv, .schedule"),
        (["draw", "gpipe", "--time"], "--time needs an --out"),
        (["draw", "gpipe", "--time", "--out", "x.txt"], "text has only ticks"),
        (["draw", "gpipe", "--compare", "--out", "x.svg"], "leave one of them out"),
        (["draw", "gpipe", "1f1b", "--out", "x.csv"], "holds one schedule; got 2"),
        (["draw", "gpipe", "--memory", "4"], "--memory is for auto"),
        (["draw", "auto", "--memory", "0.5"], "no schedule fits"),
        (["timeline", "configs/gpt-stdlib.yaml", "--out", "x.png"], "ends in .svg, .html, .json"),
        (["timeline", "configs/gpt-stdlib.yaml", "--steps", "0"], "expected at least 1"),
        (["timeline", "configs/gpt-stdlib.yaml", "--out", "none/x.svg"], "folder that is there"),
        (["draw", "auto", "--costs", "F=1:1:1"], "costs.F has 3 costs"),
        (["draw", "gpipe", "--costs", "G=1"], "there is no cost 'G'"),
        (["draw", "gpipe", "--costs", "F=1:2"], "costs.F has 2 costs"),
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
        ([], "{demo, doctor, train, resume, check, plan, timeline,"),
        (["draw", "1f1b", "--ranks", "x"], "--ranks"),
        (["draw", "1f1b", "--lockstep", "x"], "links"),
        (["train", "x.yaml", "--trainer.step", "3"], "--trainer.steps"),
        (["train", "x.yaml", "--resume", "perhaps"], "auto"),
    ],
)
def test_a_wrong_command_line_is_explained(capsys, argv, part):
    code, _, err = ended(capsys, *argv)
    assert code == 2
    assert part in err.replace("STR", "NAME")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example_that_is_a_command(capsys, name, tmp_path, monkeypatch):
    code, out, _ = ended(capsys, name, "--help")
    assert code == 0
    [example] = re.findall(
        r"[Ee]xample: (jaxpipe (?:.|\n(?!\n))+)", str(inspect.getdoc(COMMANDS[name]))
    )
    words = shlex.split(example)
    assert words[1] == name
    assert " ".join(words[:3]) in " ".join(out.split())
    # As in a folder where a run has been made.
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    (tmp_path / "runs" / "gpt-stdlib").mkdir(parents=True)
    (tmp_path / "runs" / "gpt-stdlib" / "config.yaml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(COMMANDS[name], "run", lambda command: 77)
    assert ended(capsys, *words[1:])[0] == 77


def test_every_field_has_an_option_with_help(capsys):
    _, out, _ = ended(capsys, "train", "--help")
    for component, fields in vars(Config()).items():
        for field in vars(fields):
            option = f"--{component}.{field.replace('_', '-')}"
            assert f"{option} " in out or f"{option}, " in out  # a flag has a no- form beside it


def test_version(capsys):
    code, out, _ = ended(capsys, "--version")
    assert code == 0
    assert out.startswith("jaxpipe ")


@pytest.fixture
def trained(monkeypatch):
    """The configurations that were about to be trained."""
    calls = []
    run = lambda command: calls.append((command.config, command.resume)) or 0
    monkeypatch.setattr(Train, "run", run)
    return calls


def test_options_come_on_top_of_the_file_and_the_file_on_top_of_defaults(tmp_path, trained):
    (tmp_path / "x.yaml").write_text("trainer: {steps: 5, seed: 9}\noptimizer: {clip_norm: null}\n")
    options = ["--trainer.steps=60", "--resume=must", "--pipeline.ranks=2"]
    options += ["--pipeline.partition", "0", "5", "10"]
    assert cli.main(["train", str(tmp_path / "x.yaml"), *options]) == 0
    [(config, resume)] = trained
    assert (config.trainer.steps, config.trainer.seed) == (60, 9)
    assert config.trainer.batch_size == Config().trainer.batch_size
    assert config.optimizer.clip_norm is None
    assert config.pipeline.partition == (0, 5, 10)
    assert resume == "must"


def test_resume_goes_on_as_the_run_says_wherever_it_lies(tmp_path, trained, capsys, monkeypatch):
    (tmp_path / "moved").mkdir()
    assert cli.main(["resume", str(tmp_path / "moved")]) == 2
    assert "is no run: it has no config.yaml" in capsys.readouterr().err
    (tmp_path / "moved" / "config.yaml").write_text("trainer: {steps: 5, seed: 9}")
    monkeypatch.chdir(tmp_path / "moved")
    assert cli.main(["resume", ".", "--trainer.steps", "60"]) == 0
    [(config, resume)] = trained
    assert (config.trainer.steps, config.trainer.seed, resume) == (60, 9, "must")
    assert config.run == RunConfig(name="moved", directory=str(tmp_path))


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
    bare = {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu", "PATH": ""} | chosen
    command = [sys.executable, "-c", PRINT_DEVICES]
    done = subprocess.run(command, env=bare, capture_output=True, text=True, check=True)
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
    command = f"{sys.executable} -m jaxpipe draw gpipe --microbatches 2000 | head -c 10"
    done = subprocess.run(
        command, shell=True, env=environment(), capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("gpipe: 4 r", "")
