"""A command line as a command: what options say, on top of a file; or all that is wrong."""

import contextlib
import dataclasses
import functools
import io
import itertools
import operator
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import tyro

from jaxpipe.config import Config, by_field, read_with_lines

USAGE = 2
"""The exit code of what cannot be done as it was asked for."""


def read_command(argv: Sequence[str], commands: Mapping[str, type]) -> Any:
    """The command that a command line asks for, ready to run.

    Args:
      argv: its words, without the program's name.
      commands: the commands there are, by name, as `jaxpipe.cli.main.COMMANDS`.

    Raises:
      ConfigError: its configuration cannot be read or cannot run; all that is wrong is listed.
      SystemExit: 2, only options cannot be read; standard error has each of them. 0, help.
    """
    command, said = _tried(argv, commands)
    if command is None:
        _tell_all(argv, commands, said)
        raise SystemExit(USAGE)
    if not hasattr(command, "config"):
        sys.stderr.write(said)
        return command
    reading = read_with_lines(command.file)
    # What the file says becomes the defaults of a second parsing: options come on top.
    command = _parse(argv, commands, reading.config)
    if not getattr(command, "explain", None):  # what a field means, a wrong file may ask
        reading.require_sound(command.config)
    return command


def _tell_all(argv: Sequence[str], commands: Mapping[str, type], otherwise: str) -> None:
    """Writes to standard error all options that cannot be read; tyro ends with one of them.

    Raises:
      ConfigError: the file is wrong too, or what can be read cannot run.
    """
    head, options = _options_of(argv)
    tried = [(option, _tried([*head, *option], commands)) for option in options]
    wrong = [(option[0], said) for option, (command, said) in tried if command is None]
    if not wrong or _tried(head, commands)[0] is None:
        sys.stderr.write(otherwise)  # it lies with no option by itself
        return
    sys.stderr.write("".join(said for _, said in wrong))
    sound = [*head, *(word for option, (command, _) in tried if command for word in option)]
    command = _parse(sound, commands, Config())
    if hasattr(command, "config"):
        reading = read_with_lines(command.file)
        command = _parse(sound, commands, reading.config)
        unsure = reading.unsure | {_meant_by(option) for option, _ in wrong}
        dataclasses.replace(reading, unsure=unsure).require_sound(command.config)


def _options_of(argv: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """The words before the first option; and each option, with the words that follow it."""
    starts = [at for at, word in enumerate(argv) if word.startswith("--")]
    options = [list(argv[at:end]) for at, end in itertools.pairwise([*starts, len(argv)])]
    return list(argv[: starts[0] if starts else None]), options


def _tried(argv: Sequence[str], commands: Mapping[str, type]) -> tuple[Any, str]:
    """The command, or None where tyro cannot read it; and what tyro says to standard error."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return _parse(argv, commands, Config()), said.getvalue()
    except SystemExit as end:
        if not end.code:  # help
            raise
        return None, said.getvalue()


def _meant_by(option: str) -> str:
    """The field that an option sets; its component, if no field is called so."""
    name = option.removeprefix("--").split("=")[0].replace("-", "_")
    return name if name in by_field(Config()) else name.split(".")[0]


def _parse(argv: Sequence[str], commands: Mapping[str, type], config: Config) -> Any:
    """What a command line asks for, with this configuration where options do not say."""
    kinds = (_subcommand(name, kind, config) for name, kind in commands.items())
    union: Any = functools.reduce(operator.or_, kinds)
    return tyro.cli(
        union,
        args=argv,
        prog="jaxpipe",
        description="Pipeline-parallel training in plain JAX. --version prints the version.",
    )


def _subcommand(name: str, kind: Any, config: Config) -> Any:
    """A command, as a type that tyro understands; one with a configuration starts from this one."""
    fields = [field.name for field in dataclasses.fields(kind)]
    if "config" not in fields:
        return Annotated[kind, tyro.conf.subcommand(name)]
    default = kind(**{fields[0]: tyro.MISSING}, config=config)
    return Annotated[kind, tyro.conf.subcommand(name, default=default)]
