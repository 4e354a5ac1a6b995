"""The documentation's pages: all can be found, and the commands and fields that they show exist.

Their programs run when the pages are built (`.ci/run`), not here.
"""

import ast
import importlib
import importlib.util
import inspect
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import tyro
from test_readme import DOCUMENTS, REPOSITORY, blocks, name

import jaxpipe as jp
import jaxpipe.model
from jaxpipe import cli
from jaxpipe.config import Config, by_field, parse

DOCS = REPOSITORY / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=name)


@pytest.fixture(scope="module")
def generated():
    spec = importlib.util.spec_from_file_location("generated", DOCS / "generated.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def in_toctrees(page: Path) -> list[Path]:
    """The pages that the toctrees of a page lead to, and those below these."""
    found: list[Path] = []
    for block in blocks(page):
        if block.language == "{toctree}":
            for entry in re.findall(r"(?m)^([\w/*-]+)$", block.text):
                found += sorted(page.parent.glob(f"{entry}.md"))
    return [*found, *(below for child in found for below in in_toctrees(child))]


def test_every_page_is_found_from_the_first():
    assert sorted(in_toctrees(DOCS / "index.md")) == [p for p in PAGES if p.name != "index.md"]


def shown_commands(document: Path) -> list[str]:
    """Every `jaxpipe COMMAND ...` of a document, on one line."""
    shells = [block.text for block in blocks(document) if block.language == "sh"]
    cells = [block.text for block in blocks(document) if block.language.startswith("{code-cell}")]
    shells += [text for text in cells if "%%bash" in text]
    joined = re.sub(r"\\\n\s*", "", "\n".join(shells))
    return re.findall(r"(?m)(?:^|[ /])jaxpipe ([a-z]+ [^\n&|#>]*)", joined)


class Understood(Exception):
    """A command line has been read."""


@every_document
def test_commands_are_understood(document, monkeypatch):
    def only_read(*args: Any, **kwargs: Any) -> None:
        raise Understood(read(*args, **kwargs))

    read = tyro.cli
    monkeypatch.setattr(tyro, "cli", only_read)
    for command in shown_commands(document):
        with pytest.raises(Understood):
            cli.main(shlex.split(command))


# Words of a component that are no fields, but what code calls by the same name.
OTHERS = {"model": dir(jaxpipe.model) + dir(jp.PipelineModule), "optimizer": ["init", "update"]}


@every_document
def test_fields_that_are_spoken_of_exist(document):
    components = "|".join(sorted({field.split(".")[0] for field in by_field(Config())}))
    spoken_of = re.findall(rf"`({components})\.(\w+)\b[^`(]*`", document.read_text())
    fields = {f"{part}.{word}" for part, word in spoken_of if word not in OTHERS.get(part, [])}
    known = {field for field in fields if not field.endswith((".py", ".jsonl"))}  # no files
    assert known <= by_field(Config()).keys()


@every_document
def test_yaml_is_a_configuration(document):
    for block in blocks(document):
        if block.language == "yaml":
            parse(block.text, name=name(document))


def test_the_reference_has_everything(generated):
    fields = re.findall(r"(?m)^\((\w+\.\w+)\)=$", generated.config())
    assert fields == list(by_field(Config()))
    library = generated.api()
    for word in dir(jp):
        if callable(getattr(jp, word)) and word[0] != "_" and word != "Any":
            assert f":: jaxpipe.{word}\n" in library, word
    markers = [re.findall(r"(?m)^% generated: (\w+)$", page.read_text()) for page in PAGES]
    assert {part for parts in markers for part in parts} == generated.PARTS.keys()
    assert {"train", "draw"} < set(generated.commands())


def names_of(path: Path) -> list[tuple[str, str]]:
    """What a file imports from the library: (module, name)."""
    tree = ast.parse(path.read_text())
    found = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return [(str(node.module), alias.name) for node in found for alias in node.names]


def test_commands_use_what_is_public(generated):
    public = {f"jaxpipe.{room}": generated.public(room) for room in generated.ROOMS}
    public["jaxpipe"] = generated.front_door()
    used = set()
    for path in (Path(jp.__file__).parent / "cli").glob("*.py"):
        for module, word in names_of(path):
            if module.startswith("jaxpipe") and not module.startswith("jaxpipe.cli"):
                value = getattr(importlib.import_module(module), word)
                if inspect.isfunction(value) or inspect.isclass(value):
                    used.add((module, word))
    assert {("jaxpipe.evaluation", "evaluate_run"), ("jaxpipe.trainer", "run")} < used
    assert {(module, word) for module, word in used if word not in public.get(module, [])} == set()


def templates() -> list[str]:
    """Every text in the package's code, with … for what is put in."""
    found = []
    for path in Path(jp.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [v.value if isinstance(v, ast.Constant) else "…" for v in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return [" ".join(text.split()) for text in found]


def test_messages_that_are_explained_are_the_librarys():
    page, known = DOCS / "troubleshooting.md", templates()
    messages = [" ".join(b.text.split()) for b in blocks(page) if b.language == "none"]
    assert len(messages) > 40
    assert [text for text in messages if not any(text in template for template in known)] == []
