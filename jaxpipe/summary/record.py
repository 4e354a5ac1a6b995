"""What the files of a run say, read together."""

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from jaxpipe.errors import ConfigError
from jaxpipe.summary.step import StepRecord

STEP = "timeline.json"


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """A run, as its files tell it. Whatever cannot be read is left out.

    Attributes:
      name: of the run.
      config: of the run, by component and field.
      environment: of its last start.
      lines: of metrics, by step.
      history: of events, by time.
      step: a train step.
    """

    name: str
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]]
    history: Sequence[Mapping[str, Any]]
    step: StepRecord | None

    def events(self, kind: str) -> list[Mapping[str, Any]]:
        """The events of a kind."""
        return [event for event in self.history if event.get("event") == kind]

    @property
    def started(self) -> Mapping[str, Any]:
        """The last start, as it was written down."""
        return self.events("started")[-1] if self.events("started") else {}

    @property
    def ended(self) -> Mapping[str, Any]:
        """How that start has ended; empty while it goes on, or if it was killed."""
        last = [event for event in self.history if event.get("event") in ("started", "ended")][-1:]
        return last[0] if last and last[0]["event"] == "ended" else {}

    def series(self, name: str) -> list[tuple[int, float | None]]:
        """A metric over steps; None where it was no number."""
        return [(line["step"], line[name]) for line in self.lines if name in line]

    def seconds(self) -> dict[str, float]:
        """Where the time of all starts went that have ended in order, by section."""
        total: dict[str, float] = {}
        for event in self.events("ended"):
            for name, seconds in (event.get("seconds") or {}).items():
                total[name] = total.get(name, 0.0) + seconds
        return total


def read_run(folder: Path) -> RunRecord:
    """What the files in a run's folder say.

    Raises:
      ConfigError: it is no run's folder.
    """
    config_file = folder / "config.yaml"
    if not config_file.is_file():
        raise ConfigError(f"{folder} is no run's folder: it has no config.yaml.")
    with contextlib.suppress(OSError, yaml.YAMLError):
        config = yaml.safe_load(config_file.read_text(encoding="utf-8"))
        return RunRecord(
            name=folder.resolve().name,
            config=config if isinstance(config, dict) else {},
            environment=next(iter(_json_lines(folder / "env.json", whole=True)), {}),
            lines=[x for x in _json_lines(folder / "metrics.jsonl") if "step" in x],
            history=_json_lines(folder / "history.jsonl"),
            step=StepRecord.read(folder / STEP),
        )
    raise ConfigError(f"{config_file} cannot be read.")


def _json_lines(path: Path, *, whole: bool = False) -> list[dict[str, Any]]:
    """The objects of a file, one on each line or all of it one, as far as they can be read."""
    found: list[dict[str, Any]] = []
    with contextlib.suppress(OSError):
        text = path.read_text(encoding="utf-8")
        for part in [text] if whole else text.splitlines():
            with contextlib.suppress(ValueError):
                value = json.loads(part)
                found += [value] if isinstance(value, dict) else []
    return found
