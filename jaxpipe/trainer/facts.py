"""What is said of a run: to other processes before it starts, and in its checkpoints."""

import dataclasses
from typing import Any

from jaxpipe.build import model_sizes
from jaxpipe.config import Config, RunDirectory, by_field
from jaxpipe.convert import describe_model
from jaxpipe.data import Dataset
from jaxpipe.engine import Engine
from jaxpipe.partition import Partition
from jaxpipe.processes.facts import code_facts


def facts_of(folder: RunDirectory, dataset: Dataset) -> dict[str, str]:
    """What all processes must agree on before anything is written."""
    config = {
        f"configuration: {name}": str(value) for name, value in by_field(folder.config).items()
    }
    earlier = "continued" if folder.resume else "not continued"
    return config | {"data": dataset.fingerprint, f"the run in {folder.path}": earlier}


def about(engine: Engine, config: Config, partition: Partition, dataset: Dataset) -> dict[str, Any]:
    """What a checkpoint says of the run that wrote it; nothing of it is needed to load it."""
    return {
        "model": describe_model(model_sizes(config)),
        "partition": list(partition.boundaries),
        "schedule": engine.schedule.name,
        "mesh": dict(zip(engine.mesh.axis_names, engine.mesh.devices.shape, strict=True)),
        "versions": code_facts(),
        "config": dataclasses.asdict(config),
        "data": {"fingerprint": dataset.fingerprint},
    }
