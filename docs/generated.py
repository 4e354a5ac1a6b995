"""Pages that are made from the code: a line `% generated: NAME` becomes what the code says.

Sphinx loads this as an extension, and tests call the same functions.
"""

import ast
import dataclasses
import importlib
import inspect
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jaxpipe
from jaxpipe.config import Config, by_field, explain

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOMS = (
    "losses", "layers", "mesh", "partition", "schedules", "schedules.pictures", "nn", "tensor",
    "models", "data", "optimizers", "checkpoint", "convert", "decoding", "sampling", "generate",
    "metrics", "sections", "memory", "exhaustion", "planner", "replicas", "processes", "signals",
    "simulate_devices", "watch", "config", "pretrained", "trained", "trainer", "evaluation",
    "measurement", "profiling", "summary", "demo", "doctor", "errors",
)  # fmt: skip
"""What is documented besides the front door, in this order."""


def setup(app: "Sphinx") -> dict[str, bool]:
    """Lets pages ask for generated parts."""
    app.connect("source-read", fill_in)
    app.connect("autodoc-process-docstring", spell, priority=400)  # before napoleon
    return dict(parallel_read_safe=True)


def fill_in(app: "Sphinx", page: str, source: list[str]) -> None:
    """Puts what the code says in the place of each marker of a page."""
    del app, page
    marker = re.compile(r"^% generated: (\w+)$", re.MULTILINE)
    source[0] = marker.sub(lambda match: PARTS[match[1]](), source[0])


def spell(app: "Sphinx", what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Docstrings mark code by single backticks, as Markdown does; reStructuredText wants two."""
    del app, what, name, value, options
    text = re.sub(r"(?<![`\w:])`([^`]+)`(?!`)(?=(\w)?)", _literal, "\n".join(lines))
    lines[:] = text.split("\n")


def _literal(match: re.Match[str]) -> str:
    return f"``{' '.join(match[1].split())}``" + ("\\ " if match[2] else "")


# --- The library ----------------------------------------------------------------------------------


def front_door() -> list[str]:
    """The public names of `jaxpipe` that are no rooms of it."""
    names = [name for name in dir(jaxpipe) if not name.startswith("_")]
    found = {name: getattr(jaxpipe, name) for name in names}
    return [name for name, value in found.items() if _is_documented(value)]


def public(room: str) -> list[str]:
    """The names of a room: what its front door re-exports, or a file defines."""
    module = importlib.import_module(f"jaxpipe.{room}")
    tree = ast.parse(inspect.getsource(module))
    names: list[str] = []
    if (module.__file__ or "").endswith("__init__.py"):
        for node in tree.body:
            if isinstance(node, ast.ImportFrom):
                names += [alias.asname or alias.name for alias in node.names]
    else:
        kinds = (ast.FunctionDef, ast.ClassDef)
        names = [node.name for node in tree.body if isinstance(node, kinds)]
    shown = [name for name in names if not name.startswith("_")]
    return [name for name in shown if _is_documented(getattr(module, name))]


def _is_documented(value: Any) -> bool:
    is_ours = getattr(value, "__module__", "").startswith("jaxpipe")
    return is_ours and (inspect.isclass(value) or inspect.isfunction(value))


def api() -> str:
    """Every public class and function: the front door's, then those of each room, each once."""
    at_the_door = front_door()
    seen = {id(getattr(jaxpipe, name)) for name in at_the_door}
    parts = ["## jaxpipe\n", "What `import jaxpipe as jp` gives.\n"]
    parts += [_described("jaxpipe", name) for name in at_the_door]
    for room in ROOMS:
        module = importlib.import_module(f"jaxpipe.{room}")
        fresh = [name for name in public(room) if id(getattr(module, name)) not in seen]
        seen |= {id(getattr(module, name)) for name in fresh}
        parts += [f"## jaxpipe.{room}\n", _rst(f".. automodule:: jaxpipe.{room}\n   :no-index:")]
        parts += [_described(f"jaxpipe.{room}", name) for name in fresh]
    return "\n".join(parts)


def _described(module: str, name: str) -> str:
    value = getattr(importlib.import_module(module), name)
    if not inspect.isclass(value):
        return _rst(f".. autofunction:: {module}.{name}")
    # The attributes of a dataclass or a tuple are told in its docstring.
    methods = [key for key in vars(value) if _is_method(value, key)]
    members = f"\n   :members: {', '.join(methods)}" if methods else ""
    return _rst(f".. autoclass:: {module}.{name}{members}")


def _is_method(owner: type, key: str) -> bool:
    value = inspect.getattr_static(owner, key)
    kinds = (types.FunctionType, property, staticmethod, classmethod)
    return (
        not key.startswith("_") and isinstance(value, kinds) and bool(getattr(owner, key).__doc__)
    )


def _rst(text: str) -> str:
    return f"```{{eval-rst}}\n{text}\n```\n"


# --- Configurations -------------------------------------------------------------------------------


def config() -> str:
    """Every field: its type, its default and what it means, component by component."""
    parts = []
    for component in dataclasses.fields(Config):
        kind = type(getattr(Config(), component.name))
        lines = [f"## {component.name}\n", f"{_first_paragraph(kind)}\n"]
        for name in (n for n in by_field(Config()) if n.startswith(f"{component.name}.")):
            head, text = explain(name, Config()).split("\n", 1)
            told = head.partition(": ")[2]
            words = re.sub(r"([*_<\[\]`])", r"\\\1", " ".join(text.split()))
            lines.append(f"({name})=\n`{name}`\n: `{told}`  \n  {words}\n")
        parts.append("\n".join(lines))
    return "\n".join(parts)


def _first_paragraph(owner: Any) -> str:
    return " ".join((inspect.getdoc(owner) or "").split("\n\n")[0].split())


# --- Commands -------------------------------------------------------------------------------------


def commands() -> list[str]:
    """The names of the commands, in the order of `jaxpipe --help`."""
    return re.findall(r"(?m)^│ +• ([\w-]+)", help_of())


def help_of(*words: str) -> str:
    """What `jaxpipe WORDS --help` prints, in 90 columns."""
    program = "import sys; from jaxpipe.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, *words, "--help"]
    env = os.environ | {"COLUMNS": "90", "NO_COLOR": "1", "TERM": "dumb"}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout


def cli() -> str:
    """The help of every command, without the fields of configurations that some take as well."""
    components = {field.name for field in dataclasses.fields(Config)}
    parts = []
    for command in commands():
        text = help_of(command)
        boxes = re.split(r"(?m)^(?=╭─)", text)
        kept = [box for box in boxes if _title(box) not in components]
        parts.append(f"## jaxpipe {command}\n\n```text\n{''.join(kept).rstrip()}\n```\n")
        if len(kept) < len(boxes):
            parts.append("And every field of a [configuration](config.md).\n")
    return "\n".join(parts)


def _title(box: str) -> str:
    found = re.match(r"╭─ ([\w.]+) options ", box)
    return found[1] if found else ""


PARTS: dict[str, Callable[[], str]] = {"api": api, "config": config, "cli": cli}
"""The parts that a page may ask for."""
