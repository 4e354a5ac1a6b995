"""A configuration as a file has it: what it says, and where; so that what is wrong has a place."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from jaxpipe.config.config import Config, by_field
from jaxpipe.config.validate import problems_of
from jaxpipe.errors import ConfigError


@dataclass(frozen=True)
class Reading:
    """A file of a configuration, as far as it can be read.

    Attributes:
      name: of the file, for messages.
      config: what it says; what cannot be read has its default.
      lines: the line of each field that it names, by the field's whole name.
      misread: what cannot be read, as (line, message).
      unsure: fields, or components, that cannot be read, by whole name.
    """

    name: str
    config: Config
    lines: Mapping[str, int] = field(default_factory=dict)
    misread: tuple[tuple[int, str], ...] = ()
    unsure: frozenset[str] = frozenset()

    def require_readable(self) -> Config:
        """The configuration, if all of the file can be read.

        Raises:
          ConfigError: what cannot, a line each.
        """
        if self.misread:
            raise ConfigError("\n".join(text for _, text in self._misread()))
        return self.config

    def require_sound(self, config: Config) -> None:
        """Returns if all of the file can be read, and `config`, which was made of it, can run.

        Args:
          config: what the file says, with what the command line has changed about it.

        Raises:
          ConfigError: all that is wrong, with the line of the file that says so, or that an option
              does. What may only follow from what cannot be read is left out.
        """
        certain = [problem for problem in problems_of(config) if not self._may_follow(problem)]
        listed = sorted([*self._misread(), *(self._placed(text, config) for text in certain)])
        if listed:
            advice = f"What a field means: jaxpipe check {self.name} --explain FIELD"
            raise ConfigError("\n".join([*(text for _, text in listed), advice]))

    def _misread(self) -> list[tuple[float, str]]:
        return [(line, f"{self.name}:{line}: {text}") for line, text in sorted(self.misread)]

    def _placed(self, problem: str, config: Config) -> tuple[float, str]:
        """A problem with its place, and what to sort by: the file first, by lines, then options."""
        now, read = by_field(config), by_field(self.config)
        for name in _spoken_of(problem, now):
            if now[name] != read[name]:
                return float("inf"), f"option --{name}: {problem.removeprefix(f'{name}: ')}"
            if name in self.lines:
                return self.lines[name], f"{self.name}:{self.lines[name]}: {problem}"
        return float("inf"), problem

    def _may_follow(self, problem: str) -> bool:
        """Whether a problem speaks of what has its default only because it cannot be read."""
        unsure = [
            name for name in by_field(self.config) if self.unsure & {name, name.split(".")[0]}
        ]
        return any(_has_word(problem, name.split(".")[1]) for name in unsure)


def _spoken_of(problem: str, fields: Iterable[str]) -> list[str]:
    """The fields that a problem speaks of: its subject first, then by whole name, then by word."""
    subject = problem.split(":")[0]
    whole = [name for name in fields if _has_word(problem, name)]
    own = [name for name in fields if name.split(".")[0] == subject.split(".")[0]]
    words = [name for name in own if _has_word(problem, name.split(".")[1])]
    return list(dict.fromkeys([subject, *whole, *words]))


def _has_word(text: str, word: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", text) is not None
