"""`jaxpipe eval RUN`."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from jaxpipe.cli.alive import say, signs_of_life
from jaxpipe.config import Config, differences, read
from jaxpipe.errors import ConfigError
from jaxpipe.simulate_devices import simulate_devices


@dataclass(frozen=True)
class Evaluate:
    """Say how well a model that was trained predicts held-out data: its run's, or others.

    Options change single fields of the run's configuration: data, devices, how many batches. An
    example: jaxpipe eval runs/gpt-stdlib --pipeline.ranks 2 --trainer.eval-batches 64
    """

    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The folder of a run, of its checkpoints or of one of them."""
    step: int | None = None
    """Which checkpoint; the newest, if left out."""
    json: bool = False
    """Whether to print one line of JSON."""
    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)

    @property
    def file(self) -> Path:
        """The configuration of the run, which options change.

        Raises:
          ConfigError: there is none.
        """
        here = self.path.absolute()
        files = [folder / "config.yaml" for folder in (here, *here.parents[:2])]
        for file in files:
            if file.is_file():
                return file
        raise ConfigError(
            f"{self.path} is of no run, so nothing is held out: there is no {files[0]}. Expected a"
            " folder that `jaxpipe train` wrote, such as runs/gpt-stdlib."
        )

    def run(self) -> int:
        """Prints what was found, and returns the exit code."""
        simulate_devices(self.config.pipeline.num_devices)
        from jaxpipe.evaluation import evaluate_run

        changes = differences(read(self.file), self.config)
        with signs_of_life(self.config.metrics.heartbeat) as sections:
            found = evaluate_run(
                self.path,
                self.config,
                step=self.step,
                other_data=any(change.startswith("data.") for change in changes),
                say=say,
                sections=sections,
            )
        if self.json:
            print(json.dumps(found.as_json()))
            return 0
        unit, baseline = "token" if self.config.model.reads == "tokens" else "sample", ""
        if found.bigram_loss is not None:
            unit, baseline = "byte", f" (byte bigram {found.bigram_loss:.4f})"
        print(f"{found.checkpoint}, after step {found.step:,}")
        print(f"loss: {found.metrics['loss']:.4f} nats per {unit}{baseline}")
        print(f"perplexity: {found.perplexity:.3f} per {unit}")
        if found.bits_per_byte is not None:
            print(f"bits per byte: {found.bits_per_byte:.4f}")
        for name, value in found.metrics.items():
            if name != "loss":
                print(f"{name}: {value:.4f}")
        devices = "1 device" if found.devices == 1 else f"{found.devices} devices"
        speed = f"{found.targets_per_second:,.0f} a second on {devices}"
        print(f"on {found.targets:,} {unit}s that were held out, {speed}")
        return 0
