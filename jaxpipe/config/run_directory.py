"""The folder of a run: what lies where, and when a run may use a folder that is there already.

runs/gpt-stdlib/config.yaml      the effective configuration; it starts the same run again
                config-1.yaml    what it was before a resumed run changed it
                metrics.jsonl    one line per log interval
                events.*         the same for TensorBoard
                checkpoints/     the newest states of the run, a folder for each step
                crashes.jsonl    what has ended it, if that was an exception nobody has foreseen
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxpipe.config.schema import Config
from jaxpipe.config.yaml_file import read, to_yaml
from jaxpipe.errors import ConfigError

Resume = Literal["auto", "must", "never"]

# What a run may change as it goes on: how long, where, how fast, and what it says and keeps.
_FREE = (
    *("trainer.steps", "trainer.log_interval", "trainer.eval_interval", "trainer.eval_batches"),
    *("trainer.checkpoint_interval", "trainer.keep_checkpoints", "trainer.checkpoint_patience"),
    *("trainer.keep_interval", "trainer.keep_best"),
    *("trainer.most_skipped", "trainer.spike", "trainer.rollbacks"),
    *("optimizer.learning_rate", "optimizer.warmup_steps", "optimizer.final_fraction"),
    *("pipeline.ranks", "pipeline.data", "pipeline.tensor", "pipeline.sequence_parallel"),
    *("pipeline.zero", "pipeline.zero_per", "pipeline.microbatches", "pipeline.schedule"),
    *("pipeline.chunks", "pipeline.memory_limit", "pipeline.partition", "pipeline.remat"),
)
_FREE_BEGIN = tuple(f"{name}: " for name in _FREE)


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
    barred = [change for change in changes if not change.startswith(_FREE_BEGIN)]
    if barred and resume == "auto":
        listed = "".join(f"\n  {change}" for change in barred)
        raise ConfigError(
            f"{path} holds a run of another configuration:{listed}\nChoose another --run.name,"
            " continue it as it is now with --resume must, or start anew with --resume never,"
            " which moves the old run aside."
        )
    return dataclasses.replace(chosen, resume=True, changes=changes)


def differences(old: Config, new: Config) -> list[str]:
    """What changed from one run to another, a line for each field; where runs lie is left out.

    >>> from jaxpipe.config.schema import TrainerConfig
    >>> differences(Config(), Config(trainer=TrainerConfig(steps=10)))
    ['trainer.steps: 1000 -> 10']
    """
    before, after = by_field(old), by_field(new)
    return [
        f"{name}: {before[name]} -> {after[name]}"
        for name in before
        if before[name] != after[name] and not name.startswith("run.")
    ]


def by_field(config: Config) -> dict[str, Any]:
    """Every value by its whole name, as in `{"trainer.steps": 1000, ...}`."""
    return {
        f"{component}.{field}": value
        for component, fields in dataclasses.asdict(config).items()
        for field, value in fields.items()
    }


def _unused(folder: Path, stem: str, suffix: str, *, dash: str = "-") -> Path:
    number = 1
    while (folder / f"{stem}{dash}{number}{suffix}").exists():
        number += 1
    return folder / f"{stem}{dash}{number}{suffix}"
