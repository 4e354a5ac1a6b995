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


def read_command(argv: Sequence[str], commands: Mapping[str, type]) -> Any:
    """The command that a command line asks for, ready to run.

    Args:
      argv: its words, without the program's name.
      commands: the commands there are, by name, as `jaxpipe.cli.main.COMMANDS`.

    Raises:
      ConfigError: its configuration cannot be read or cannot run; all that is wrong is listed.
      SystemExit: 2, only options cannot be read; standard error has each of them. 0, help.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            command = _parse(argv, commands, Config())
    except SystemExit as end:
        if end.code:
            _tell_all(argv, commands, said.getvalue())
        raise
    if not hasattr(command, "config"):
        sys.stderr.write(said.getvalue())
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
    tried = [(option, _complaint([*head, *option], commands)) for option in options]
    if not any(said for _, said in tried) or _complaint(head, commands):
        sys.stderr.write(otherwise)  # it lies with no option by itself
        return
    sys.stderr.write("".join(said for _, said in tried))
    sound = [*head, *(word for option, said in tried if not said for word in option)]
    command = _parse(sound, commands, Config())
    if hasattr(command, "config"):
        reading = read_with_lines(command.file)
        unsure = reading.unsure | {_meant_by(option[0]) for option, said in tried if said}
        command = _parse(sound, commands, reading.config)
        dataclasses.replace(reading, unsure=unsure).require_sound(command.config)


def _options_of(argv: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """The words before the first option; and each option, with the words that follow it."""
    starts = [at for at, word in enumerate(argv) if word.startswith("--")]
    options = [list(argv[at:end]) for at, end in itertools.pairwise([*starts, len(argv)])]
    return list(argv[: starts[0] if starts else None]), options


def _complaint(argv: Sequence[str], commands: Mapping[str, type]) -> str:
    """What tyro has to say against a command line, or nothing."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            _parse(argv, commands, Config())
    except SystemExit:
        return said.getvalue()
    return ""


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
