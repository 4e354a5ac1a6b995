"""A configuration as a file has it: what it says, and where; so that what is wrong has a place."""

import re
from collections.abc import Mapping
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
        doubted = [problem for problem in problems_of(config) if not self._may_follow(problem)]
        listed = sorted([*self._misread(), *(self._placed(text, config) for text in doubted)])
        if listed:
            advice = f"What a field means: jaxpipe check {self.name} --explain FIELD"
            raise ConfigError("\n".join([*(text for _, text in listed), advice]))

    def _misread(self) -> list[tuple[float, str]]:
        return [(line, f"{self.name}:{line}: {text}") for line, text in sorted(self.misread)]

    def _placed(self, problem: str, config: Config) -> tuple[float, str]:
        """A problem with its place, and what to sort by: the file first, by lines, then options."""
        subject = problem.split(":")[0]
        if by_field(config)[subject] != by_field(self.config)[subject]:
            return float("inf"), f"option --{problem}"
        if subject in self.lines:
            return self.lines[subject], f"{self.name}:{self.lines[subject]}: {problem}"
        return float("inf"), problem

    def _may_follow(self, problem: str) -> bool:
        """Whether a problem speaks of what has its default only because it cannot be read."""
        fields = [
            name for name in by_field(self.config) if self.unsure & {name, name.split(".")[0]}
        ]
        return any(re.search(rf"\b{name.split('.')[1]}\b", problem) for name in fields)
