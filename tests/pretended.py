"""A training loop on a small pretended engine, for tests of the loop."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, SingleDeviceSharding

import jaxpipe as jp
from jaxpipe.checkpoint import Checkpoints
from jaxpipe.config import (
    Config,
    DataConfig,
    OptimizerConfig,
    Resume,
    RunConfig,
    TrainerConfig,
    choose,
)
from jaxpipe.engine import Engine
from jaxpipe.errors import JaxpipeError
from jaxpipe.metrics import PlainConsole
from jaxpipe.partition import LayerCost, Partition, partition
from jaxpipe.prepare import dataset_of, resolved
from jaxpipe.schedules import Lockstep, Schedule, forward_only
from jaxpipe.trainer import train


def refuse(state, batch):
    raise JaxpipeError("the profile shows nothing")


LAYERS = [LayerCost("the layer", "Layer", 10, 20, 30)]


@jax.tree_util.register_pytree_with_keys_class
class State(dict[str, Any]):
    """As much of a `TrainState` as the loop needs."""

    def tree_flatten_with_keys(self):
        return [(jax.tree_util.DictKey(name), leaf) for name, leaf in self.items()], tuple(self)

    @classmethod
    def tree_unflatten(cls, names, leaves):
        return cls(zip(names, leaves, strict=True))

    def as_of(self, step):
        return State(self, step=jnp.int32(step))


class PretendedEngine(NamedTuple):
    """As much of an engine as the loop needs: its loss depends on every batch so far."""

    init: Callable[..., Any]
    train_batch: Callable[..., Any]
    eval_batch: Callable[..., Any]
    abstract_state: Callable[..., Any]
    schedule: Schedule = forward_only(1, 1)
    mesh: Mesh = jp.make_mesh()
    compiler_options: Callable[[], dict[str, Any]] = lambda: {"an_option": True}
    partition: Callable[..., Partition] = lambda batch: partition(LAYERS, 1, "uniform")
    lockstep: Lockstep = Lockstep()
    timeline: Callable[..., Any] = refuse
    local_rows: Callable[[int], slice] = lambda size: slice(0, size)


def pretended(nan_at=None, eval_nan_at=None, skipped=1, nan_of=None):
    def train_batch(state, batch):
        step, total = state["step"] + 1, state["total"] * 0.9 + batch["inputs"].mean()
        bad = step == (nan_at or -1)
        if nan_of is not None:
            bad |= jnp.all(batch["inputs"] == nan_of["inputs"])
        loss = jnp.where(bad, jnp.nan, total / 100)
        after = State(step=step, total=jnp.where(bad, state["total"], total))
        return after, {
            "loss": loss,
            "grad_norm": total / 50,
            "skipped": jnp.where(jnp.isfinite(loss), 0, skipped),
        }

    def eval_batch(state, batch):
        loss = jnp.where(state["step"] == (eval_nan_at or -1), jnp.nan, batch["inputs"].mean())
        return {"loss": loss + state["total"], "weight": jnp.float32(batch["targets"].size)}

    def init(key, batch):
        return State(step=jnp.int32(0), total=jax.random.uniform(key))

    def abstract_state(batch):
        sharding = SingleDeviceSharding(jax.devices()[0])
        return State(
            step=jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding),
            total=jax.ShapeDtypeStruct((), jnp.float32, sharding=sharding),
        )

    engine = PretendedEngine(
        init, jax.jit(train_batch, donate_argnums=0), jax.jit(eval_batch), abstract_state
    )
    return cast(Engine, engine)


def a_config(tmp_path, name="run", **trainer):
    settings: dict[str, Any] = {
        "steps": 8,
        "batch_size": 4,
        "log_interval": 1,
        "eval_interval": 3,
        "eval_batches": 2,
        "checkpoint_interval": 2,
        "most_skipped": 0,
    }
    return Config(
        data=DataConfig(
            path=str(tmp_path / "text"), pattern="*.py", held_out_fraction=0.3, sequence_length=16
        ),
        optimizer=OptimizerConfig(warmup_steps=2),
        trainer=TrainerConfig(**(settings | trainer)),
        run=RunConfig(name=name, directory=str(tmp_path / "runs")),
    )


def trained(config, engine=None, resume: Resume = "auto", should_stop=lambda: False, **more):
    stream = io.StringIO()
    dataset = dataset_of(config)
    folder = choose(resolved(config, dataset), resume)
    engine = pretended() if engine is None else engine
    outcome = train(engine, folder, dataset, PlainConsole(8, stream), should_stop, **more)
    return outcome, stream.getvalue()


def lines_of(config_or_folder):
    folder = config_or_folder
    if isinstance(folder, Config):
        folder = Path(folder.run.directory) / folder.run.name
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses_of(config_or_folder):
    return {line["step"]: line["loss"] for line in lines_of(config_or_folder) if "loss" in line}


def saved_steps(config):
    with Checkpoints(Path(config.run.directory) / config.run.name / "checkpoints") as checkpoints:
        return checkpoints.steps()


def after(num_times):
    """A question that is answered with yes from its n-th time after a first step on.

    A run asks twice before that step.
    """
    answers = iter([False] * (num_times + 1))
    return lambda: next(answers, True)
