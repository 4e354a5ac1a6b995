"""jaxpipe: pipeline-parallel training in plain JAX, any schedule in one jitted program."""

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
from jaxpipe.processes import Launch as Launch
from jaxpipe.processes import Processes as Processes
from jaxpipe.processes import start_processes as start_processes
from jaxpipe.state import TrainState as TrainState
from jaxpipe.zero import Zero as Zero

__version__ = "0.1.0"
