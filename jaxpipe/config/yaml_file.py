"""A configuration as a YAML file: read it with every mistake listed, or write it.

Reading goes over YAML's nodes, which know their lines, and not over the dicts that come of them:
so a message names file and line, and a key given twice is seen.
"""

import dataclasses
import math
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import yaml

from jaxpipe.config.config import Config
from jaxpipe.config.reading import Reading
from jaxpipe.errors import ConfigError, closest, nearest

VERSION = 1  # of the format, which runs write into their config.yaml


def read(path: str | Path) -> Config:
    """The configuration in a YAML file; a field that it does not name keeps its default.

    Raises:
      ConfigError: the file is missing or is no YAML, or it has unknown keys, keys given twice
          or values of the wrong type; all of them are listed, each with its line.
    """
    return read_with_lines(path).require_readable()


def read_with_lines(path: str | Path) -> Reading:
    """What a YAML file says, where it says it, and what of it cannot be read.

    Raises:
      ConfigError: the file is missing or is no YAML.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}.") from error
    return _parse(text, str(path))


def parse(text: str, *, name: str = "<text>") -> Config:
    """The configuration that a YAML text holds; `name` stands for the file in messages.

    >>> parse("pipeline: {ranks: 2}").pipeline.ranks
    2

    Raises:
      ConfigError: as `read`.
    """
    return _parse(text, name).require_readable()


def _parse(text: str, name: str) -> Reading:
    loader = yaml.SafeLoader(text)
    found = _Found(loader)
    try:
        node = loader.get_single_node()
        config = Config() if node is None else _component(node, Config, "", found)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{name}:{line}: this is not YAML: {error.problem}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: this is not YAML: {error}") from error
    finally:
        loader.dispose()
    return Reading(
        name, cast(Config, config), found.lines, tuple(found.misread), frozenset(found.unsure)
    )


def to_yaml(config: Config) -> str:
    """The YAML text of every field: `parse(to_yaml(config)) == config`.

    >>> print(*to_yaml(Config()).splitlines()[:2])
    version: 1 model:
    """
    tree = _plain(dataclasses.asdict(config))
    text = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return f"version: {VERSION}\n{text}"


def yaml_of_changes(config: Config) -> str:
    """The YAML text of the fields that differ from their defaults, which are told beside them.

    >>> print(yaml_of_changes(parse("trainer: {steps: 10}")))
    # What is not as by default.
    trainer:
      steps: 10  # default: 1000
    <BLANKLINE>
    """
    lines, defaults = ["# What is not as by default."], Config().components
    for name, component in config.components.items():
        values, usual = dataclasses.asdict(component), dataclasses.asdict(defaults[name])
        changed = [field for field in values if values[field] != usual[field]]
        lines += [f"{name}:"] if changed else []
        lines += [
            f"  {field}: {_inline(values[field])}  # default: {_inline(usual[field])}"
            for field in changed
        ]
    return "\n".join(lines) + "\n"


def _inline(value: Any) -> str:
    """A value as YAML, on one line."""
    # Within a list a text is quoted where that is needed, and nothing ends a document.
    shown = yaml.dump(
        [_plain(value)],
        Dumper=_Dumper,
        allow_unicode=True,
        default_flow_style=True,
        width=math.inf,
    )
    return shown.strip()[1:-1]


class _Dumper(yaml.SafeDumper):
    """Escapes what YAML would read as another character, such as the line ends of Unicode."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None if text.isprintable() else '"'  # only double quotes know escapes
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _represent_text)


class _Found:
    """What comes to light as a file is read, as in `Reading`."""

    def __init__(self, loader: yaml.SafeLoader):
        self.loader = loader
        self.lines: dict[str, int] = {}
        self.misread: list[tuple[int, str]] = []
        self.unsure: set[str] = set()

    def wrong(self, node: yaml.Node, text: str, unsure: str) -> None:
        self.misread.append((_line(node), text))
        self.unsure.add(unsure)


def _component(node: yaml.Node, kind: type, path: str, found: _Found) -> Any:
    """A `kind` from a mapping node; what is wrong with it is left out, and noted in `found`."""
    hints = get_type_hints(kind)
    if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null":
        return kind()  # a component whose fields are all commented out
    if not isinstance(node, yaml.MappingNode):
        got = _shown(found.loader, node)
        found.wrong(node, f"{path or 'the file'}: got {got}, expected keys.", path)
        return kind()
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = str(key_node.value)
        full = f"{path}.{key}" if path else key
        if full == "version":
            _check_version(value_node, found)
        elif key not in hints:
            meant = closest(key, hints) or key
            hint = nearest(key, hints)
            found.wrong(key_node, f"unknown key {full!r}; {hint}", full[: -len(key)] + meant)
        elif key in values:
            found.wrong(key_node, f"{full}: given twice; keep one.", full)
        elif dataclasses.is_dataclass(hints[key]):
            values[key] = _component(value_node, hints[key], full, found)
        else:
            found.lines[full] = _line(key_node)
            try:
                value = found.loader.construct_object(value_node, deep=True)
                values[key] = _value(value, hints[key])
            except _WrongType:
                got, expected = _shown(found.loader, value_node), _described(hints[key])
                found.wrong(value_node, f"{full}: got {got}, expected {expected}.", full)
    return kind(**values)


def _check_version(node: yaml.Node, found: _Found) -> None:
    version = found.loader.construct_object(node)
    if type(version) is not int or not 1 <= version <= VERSION:
        text = (
            f"version: got {version!r}; this jaxpipe reads {VERSION}. Upgrade it, or leave it out."
        )
        found.wrong(node, text, "version")


class _WrongType(Exception):
    """A value that does not fit its field."""


def _value(value: Any, hint: Any) -> Any:
    """`value` as the type `hint`, or `_WrongType`. Only what loses nothing is converted."""
    origin, options = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _first_fit(value, options)
    if origin is Literal:
        if value in options and type(value) in {type(option) for option in options}:
            return value
    elif origin is tuple:
        if isinstance(value, list):
            return tuple(_value(item, options[0]) for item in value)
    elif hint is float:
        number = _number(value)
        if number is not None:
            return number
    elif type(value) is hint or (hint is type(None) and value is None):
        return value
    raise _WrongType


def _first_fit(value: Any, options: tuple[Any, ...]) -> Any:
    for option in options:
        try:
            return _value(value, option)
        except _WrongType:
            continue
    raise _WrongType


def _number(value: Any) -> float | None:
    # YAML 1.1 reads 3e-4 (no dot, no sign) as text; nobody who writes it means text.
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return None if isinstance(value, str) and not math.isfinite(number) else number


def _described(hint: Any) -> str:
    origin, options = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(_described(option) for option in options)
    if origin is Literal:
        return " or ".join(repr(option) for option in options)
    if origin is tuple:
        return "a list of integers"
    names = {int: "an integer", float: "a number", str: "text", bool: "true or false"}
    return names.get(hint, "null")


def _shown(loader: yaml.SafeLoader, node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "keys"
    value = loader.construct_object(node, deep=True)
    return "null" if value is None else f"{value!r} ({type(value).__name__})"


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _plain(value: Any) -> Any:
    """`value` with lists for tuples, which YAML's safe types do not have."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value
