"""What the documents claim: their programs run, their drawings are real, their commands exist."""

import contextlib
import importlib.util
import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from children import REPOSITORY, environment

from jaxpipe import cli
from jaxpipe.cli.timeline import DrawTimeline
from jaxpipe.cli.train import Train
from jaxpipe.errors import ScheduleError
from jaxpipe.schedules import (
    NAMES,
    Lockstep,
    Schedule,
    by_name,
    forward_only,
    parse_costs,
    per_stage,
    simulate,
)

README = REPOSITORY / "README.md"
DOCUMENTS = [README, REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
DRAWN = r"([\w-]+): (\d+) ranks?, \d+ stages?, (\d+) microbatch"

# Runs Python blocks one after the other in one namespace, with line numbers of the document.
RUN_BLOCKS = """
import sys
namespace = {"__name__": "__main__"}
path, *blocks = sys.argv[1:]
for line, source in zip(blocks[::2], blocks[1::2], strict=True):
    exec(compile("\\n" * int(line) + source, path, "exec"), namespace)
"""


class Block(NamedTuple):
    """A fenced block of a document."""

    language: str
    line: int  # of its fence, from 1
    text: str


def blocks(document: Path) -> Iterator[Block]:
    text = document.read_text()
    for match in re.finditer(r"^```([^`\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield Block(match[1], text.count("\n", 0, match.start()) + 1, match[2])


def programs(document: Path) -> list[Block]:
    return [block for block in blocks(document) if block.language == "python"]


def name(document: Path) -> str:
    return str(document.relative_to(REPOSITORY))


def only_block(start: str, document: Path = README) -> str:
    """The text of a document's block that starts so."""
    [text] = [block.text for block in blocks(document) if block.text.startswith(start)]
    return text


@pytest.mark.parametrize("document", [*filter(programs, DOCUMENTS)], ids=name)
def test_programs_run(document, tmp_path):
    # Programs ask for simulated devices themselves, as a reader's would.
    pieces = [piece for block in programs(document) for piece in (str(block.line), block.text)]
    command = [sys.executable, "-c", RUN_BLOCKS, str(document), *pieces]
    env = environment(JAX_PLATFORMS="cpu")
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_first_program_has_twelve_lines():
    lines = programs(README)[0].text.splitlines()
    assert sum(bool(line.strip()) for line in lines) == 12


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_drawings_are_real(document):
    for block in blocks(document):
        if found := re.match(DRAWN, block.text):
            which, counts = found[1], (int(found[2]), int(found[3]))
            real = forward_only(*counts) if which == "forward" else by_name(which, *counts)
            assert block.text == f"{real}\n"


def test_the_readme_draws_1f1b_on_four_ranks():
    assert only_block("1f1b: 4 ranks") == f"{by_name('1f1b', 4, 8)}\n"


def test_the_table_of_schedules_is_real():
    cells = [re.split(r" *\| *", line.strip("| ")) for line in README.read_text().splitlines()]
    rows = {row[0].strip("`"): row[2:] for row in cells if len(row) == 5 and row[0][0] == "`"}
    for schedule in NAMES:
        timeline = simulate(by_name(schedule, 4, 8))
        bubble, _, held = rows[schedule]
        assert bubble == f"{timeline.bubble_fraction:.1%}"
        assert held == " ".join(map(str, timeline.held))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_commands_exist(document, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "wandb" or found(name))
    trained = []
    for command in (Train, DrawTimeline):
        monkeypatch.setattr(command, "run", lambda self: trained.append(self.config) or 0)
    shells = [block.text for block in blocks(document) if block.language == "sh"]
    commands = re.findall(
        r"jaxpipe ((?:train|timeline|draw) [^\n&|#]+)", "\n".join(shells).replace("\\\n", " ")
    )
    for command in commands:
        assert cli.main(command.split()) == 0, command
    assert len(trained) == sum(not command.startswith("draw ") for command in commands)
    if document == README:
        assert trained and len(trained) < len(commands)


def test_ci_runs_the_readmes_test_command_word_for_word():
    command = only_block("python3 -m venv .venv-test ").strip()
    assert command.endswith("-m pytest -n 2")
    assert command in (REPOSITORY / ".ci" / "run").read_text().splitlines()


def test_the_file_tree_is_complete():
    listed, folders = set(), []
    for line in only_block("jaxpipe/\n", REPOSITORY / "docs" / "files.md").splitlines():
        path = line.split()[0]
        folders = [*folders[: (len(line) - len(line.lstrip())) // 2], path]
        listed.add("".join(folders))
    assert [path for path in listed if not (REPOSITORY / path).exists()] == []
    package = REPOSITORY / "jaxpipe"
    modules = {path.relative_to(REPOSITORY) for path in package.rglob("*.py")}
    plain = {str(path) for path in modules if not path.stem.startswith("__")}
    assert plain - listed == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_lead_somewhere(document):
    links = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_decisions_are_numbered():
    numbers = [path.name[:4] for path in sorted((REPOSITORY / "docs/decisions").glob("*.md"))]
    assert numbers == [f"{i:04}" for i, _ in enumerate(numbers, 1)] != []
    assert all(a != b for a, b in itertools.pairwise(numbers))


def families(num_stages: int, memory: float) -> Iterator[Schedule]:
    """Every named schedule of 4 ranks and 8 microbatches with so many stages, within memory."""
    for which in NAMES:
        with contextlib.suppress(ScheduleError):
            schedule = by_name(which, 4, 8, num_chunks=num_stages // 4)
            if max(simulate(schedule).held) * 4 / num_stages <= memory:
                yield schedule


def test_the_table_of_what_auto_finds_is_real(capsys):
    document = (REPOSITORY / "docs" / "schedules.md").read_text()
    commands = re.findall(r"^jaxpipe (draw --compare .* auto .*)$", document, re.M)
    rows = re.findall(r"^\| .* \| (\d) \| `([\w-]+)` \| ([\d.]+) \| ([\d.]+) \|$", document, re.M)
    for command, (stages, best, makespan, found) in zip(commands, rows, strict=True):
        words = command.split()
        option = lambda name, default, words=words: (
            words[words.index(name) + 1] if name in words else default
        )
        costs = per_stage(parse_costs(option("--costs", "")), int(stages), 4)
        lockstep = Lockstep("links") if "--lockstep" in words else None
        known = {
            schedule.name: simulate(schedule, costs, lockstep).makespan
            for schedule in families(int(stages), float(option("--memory", "4")))
        }
        assert f"{min(known.values()):g}" == makespan == f"{known[best]:g}"
        assert cli.main(words) == 0
        lines = map(str.split, capsys.readouterr().out.splitlines())
        assert [stages, found] in [[line[2], line[5]] for line in lines if "auto" in line]
        assert float(found) < float(makespan)


def test_the_faults_that_documents_speak_of_are_tested():
    document = (REPOSITORY / "docs" / "reliability.md").read_text()
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", document)
    assert len(named) > 40
    for file, name in named:
        assert f"def {name}(" in (REPOSITORY / "tests" / file).read_text(), f"{file}::{name}"
