"""The folder of a run: what lies where, and when a run may use a folder that is there already.

runs/gpt-stdlib/config.yaml      the effective configuration; it starts the same run again
                config.diff      what of it is not as by default; starts the same run, too
                config-1.yaml    what it was before a resumed run changed it
                env.json         versions, devices and variables of its last start
                env-1.json       those of its first start, and so on
                tokenizer.json   what made tokens of text, unless they are bytes
                metrics.jsonl    one line per log interval
                events.*         the same for TensorBoard
                history.jsonl    its starts, rollbacks and endings, and where the time went
                log/host_0.txt   what process 0 has said
                timeline.json    a measured step
                trace.json       the same for Perfetto, once the run has ended
                summary.html     all of this for people, once the run has ended
                checkpoints/     the newest states of the run, a folder for each step
                crashes.jsonl    what has ended it, if that was an exception nobody has foreseen
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxpipe.config.config import Config, differences
from jaxpipe.config.yaml_file import read, to_yaml, yaml_of_changes
from jaxpipe.data.tokenizer import TOKENIZER_FILE
from jaxpipe.errors import ConfigError

Resume = Literal["auto", "must", "never"]


@dataclass(frozen=True)
class RunDirectory:
    """A folder that a run may use.

    Attributes:
      path: the folder.
      config: the configuration of the run.
      resume: whether an earlier run in this folder is to be continued.
      changes: what the configuration changes about that earlier run, for people.
      aside: an earlier run that has to make room, and the path it moves to.
    """

    path: Path
    config: Config
    resume: bool = False
    changes: tuple[str, ...] = ()
    aside: Path | None = None

    @property
    def config_file(self) -> Path:
        """The effective configuration."""
        return self.path / "config.yaml"

    @property
    def metrics_file(self) -> Path:
        """The metrics as JSON lines."""
        return self.path / "metrics.jsonl"

    @property
    def history_file(self) -> Path:
        """What has happened to the run, as JSON lines."""
        return self.path / "history.jsonl"

    def log_file(self, process: int) -> Path:
        """What a process has said, as text."""
        return self.path / "log" / f"host_{process}.txt"

    @property
    def tokenizer_file(self) -> Path:
        """The tokenizer, where there is one."""
        return self.path / TOKENIZER_FILE

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    def open(self) -> None:
        """Makes the folder and writes the configuration; keeps whatever was there."""
        if self.aside is not None:
            self.path.rename(self.aside)
        self.path.mkdir(parents=True, exist_ok=True)
        if self.changes:
            self.config_file.rename(_unused(self.path, "config", ".yaml"))
        if not self.config_file.exists():
            self.config_file.write_text(to_yaml(self.config), encoding="utf-8")
            changed = self.path / "config.diff"
            changed.write_text(yaml_of_changes(self.config), encoding="utf-8")

    def keep_environment(self, environment: Mapping[str, Any]) -> None:
        """Writes `env.json`; an earlier start's is renamed to `env-1.json`, `env-2.json`, ..."""
        path = self.path / "env.json"
        if path.exists():
            path.rename(_unused(self.path, "env", ".json"))
        path.write_text(json.dumps(dict(environment), indent=2) + "\n", encoding="utf-8")


def choose(config: Config, resume: Resume) -> RunDirectory:
    """The folder `config.run.directory / config.run.name`, if the run may use it.

    Writes nothing: `RunDirectory.open` does. `resume` says what to do about an earlier run there:

    - `"auto"` continues it if it is the same model, on the same batches, with the same optimizer;
      how long, on which devices, and with which learning rate may change;
    - `"must"` continues it even if the configuration has changed, and refuses to start anew;
    - `"never"` starts anew and moves the earlier run aside to `name.1`, `name.2`, ...

    Raises:
      ConfigError: the folder holds something else, a run of another configuration, or, with
          `"must"`, no run at all.
    """
    path = Path(config.run.directory) / config.run.name
    chosen = RunDirectory(path, config)
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        if resume == "must":
            raise ConfigError(f"there is no run to resume in {path}; start one with --resume auto.")
        return chosen
    if not chosen.config_file.is_file():
        raise ConfigError(
            f"{path} exists and is no run (it has no config.yaml); choose another --run.name."
        )
    if resume == "must" and not any(chosen.checkpoints.glob("step_*")):
        raise ConfigError(f"the run in {path} has no checkpoint to resume from.")
    if resume == "never":
        return dataclasses.replace(chosen, aside=_unused(path.parent, path.name + ".", "", dash=""))
    changes = tuple(differences(read(chosen.config_file), config))
    free = {f"{name}.{field}" for name, part in config.components.items() for field in part.FREE}
    barred = [change for change in changes if change.split(":")[0] not in free]
    if barred and resume == "auto":
        listed = "".join(f"\n  {change}" for change in barred)
        raise ConfigError(
            f"{path} holds a run of another configuration:{listed}\nChoose another --run.name,"
            " continue it as it is now with --resume must, or start anew with --resume never,"
            " which moves the old run aside."
        )
    return dataclasses.replace(chosen, resume=True, changes=changes)


def _unused(folder: Path, stem: str, suffix: str, *, dash: str = "-") -> Path:
    number = 1
    while (folder / f"{stem}{dash}{number}{suffix}").exists():
        number += 1
    return folder / f"{stem}{dash}{number}{suffix}"
