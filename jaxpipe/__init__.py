"""jaxpipe: pipeline-parallel training in plain JAX, any schedule in one jitted program."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxpipe import losses as losses
    from jaxpipe import nn as nn
    from jaxpipe import schedules as schedules
    from jaxpipe.checkpoint import Checkpoints as Checkpoints
    from jaxpipe.engine import Engine as Engine
    from jaxpipe.engine import initialize as initialize
    from jaxpipe.errors import JaxpipeError as JaxpipeError
    from jaxpipe.layers import FunctionLayer as FunctionLayer
    from jaxpipe.layers import LayerSpec as LayerSpec
    from jaxpipe.layers import TiedLayerSpec as TiedLayerSpec
    from jaxpipe.loss_scale import LossScale as LossScale
    from jaxpipe.mesh import describe_mesh as describe_mesh
    from jaxpipe.mesh import make_mesh as make_mesh
    from jaxpipe.model import PipelineModule as PipelineModule
    from jaxpipe.partition import Partition as Partition
    from jaxpipe.planner import Plan as Plan
    from jaxpipe.planner import plan as plan
    from jaxpipe.processes import Launch as Launch
    from jaxpipe.processes import Processes as Processes
    from jaxpipe.processes import start_processes as start_processes
    from jaxpipe.state import TrainState as TrainState
    from jaxpipe.zero import Zero as Zero

__version__ = "0.1.0"

# Imported when they are asked for: Flax and Orbax take a second, which `jaxpipe --help` need not.
_HOMES = {
    "losses": "",
    "nn": "",
    "schedules": "",
    "Checkpoints": "checkpoint",
    "Engine": "engine",
    "FunctionLayer": "layers",
    "JaxpipeError": "errors",
    "Launch": "processes",
    "LayerSpec": "layers",
    "LossScale": "loss_scale",
    "Partition": "partition",
    "Plan": "planner",
    "PipelineModule": "model",
    "Processes": "processes",
    "TiedLayerSpec": "layers",
    "TrainState": "state",
    "Zero": "zero",
    "describe_mesh": "mesh",
    "initialize": "engine",
    "make_mesh": "mesh",
    "plan": "planner",
    "start_processes": "processes",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES[name]
    if not home:
        return importlib.import_module(f"{__name__}.{name}")
    found = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
