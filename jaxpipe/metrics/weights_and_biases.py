"""Metrics to Weights & Biases; the package `wandb` is imported when such a sink is opened."""

import contextlib
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class WeightsAndBiases:
    """A run of Weights & Biases, the same one each time that the run goes on.

    Where it sends to, and whether at all (`WANDB_MODE=offline`), is for W&B's own variables to
    say. Its run's id lies in the folder, in `wandb-run-id.txt`; no key is ever written there.
    """

    def __init__(self, folder: Path, *, project: str, name: str, config: Mapping[str, Any]) -> None:
        """Starts the run, or goes on with it.

        Args:
          folder: of the run; W&B's own files go into `wandb/` there.
          project: of W&B, where runs are listed.
          name: of the run.
          config: what W&B is to show of its settings.
        """
        import wandb  # jaxpipe[wandb]  # pyright: ignore[reportMissingImports]

        folder.mkdir(parents=True, exist_ok=True)
        self._run: Any = wandb.init(
            project=project,
            name=name,
            dir=str(folder),
            id=_run_id(folder / "wandb-run-id.txt"),
            resume="allow",
            config=dict(config),
        )
        # W&B's own count of steps only rises: steps after a rollback would be lost.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds a row."""
        self._run.log({"step": step, **scalars})

    def close(self) -> None:
        """Sends what is pending."""
        self._run.finish()


def _run_id(path: Path) -> str:
    """What the first start of a run has chosen."""
    with contextlib.suppress(OSError):
        if known := path.read_text(encoding="utf-8").strip():
            return known
    fresh = secrets.token_hex(4)
    path.write_text(fresh + "\n", encoding="utf-8")
    return fresh
