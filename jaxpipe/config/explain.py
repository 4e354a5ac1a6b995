"""What the fields of a configuration mean, out of the text under each."""

import ast
import dataclasses
import difflib
import inspect
import itertools
import re
from typing import Any, get_type_hints

from jaxpipe.config.config import Config, by_field
from jaxpipe.config.counterparts import counterparts_of
from jaxpipe.errors import ConfigError


def explain(key: str, config: Config) -> str:
    """A field in words: type, default, value here, meaning, whether it may change, what takes it.

    Args:
      key: the field's whole name, a component's name, or a field's without its component's.
      config: the configuration at hand.

    Raises:
      ConfigError: there is no such field; names the nearest.

    >>> print(explain("trainer.seed", Config()))
    trainer.seed: int = 0
        Seed of the parameters, of dropout and of the order of the data.
        A run that goes on keeps it.
        In Python: jaxpipe.data.Batches(seed), jaxpipe.Engine.init
    """
    fields = {f"{part}.{name}": text for part in _components() for name, text in _texts(part)}
    places = (lambda n: n, lambda n: n.split(".")[0], lambda n: n.split(".")[1])
    chosen = next(filter(None, ([n for n in fields if at(n) == key] for at in places)), [])
    if not chosen:
        near = difflib.get_close_matches(key, [*fields, *_components()], n=5, cutoff=0.4)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        parts = ", ".join(_components())
        raise ConfigError(f"{key}: unknown; {hint}The components, which list theirs: {parts}.")
    defaults, values = by_field(Config()), by_field(config)
    lines = []
    for name in chosen:
        kind, text = fields[name]
        here = "" if values[name] == defaults[name] else f", here {values[name]!r}"
        component, field = name.split(".")
        free = field in config.components[component].FREE
        then = "may change it" if free else "keeps it"
        python = ", ".join(counterparts_of(name))
        lines += [f"{name}: {kind} = {defaults[name]!r}{here}", f"    {text}"]
        lines += [f"    A run that goes on {then}.", f"    In Python: {python}"]
    return "\n".join(lines)


def _components() -> dict[str, Any]:
    return {field.name: get_type_hints(Config)[field.name] for field in dataclasses.fields(Config)}


def _texts(component: str) -> list[tuple[str, tuple[str, str]]]:
    """(name, (type, text)) of the fields of a component, out of its source."""
    source: Any = ast.parse(inspect.getsource(_components()[component]))
    body = source.body[0].body
    found = []
    for field, below in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign):
            kind = re.sub(r"Literal\[(.*?)\]", r"\1", ast.unparse(field.annotation))
            text = " ".join(below.value.value.split())
            found.append((ast.unparse(field.target), (kind, text)))
    return found
