"""Checkpoints that know layers, not stages."""

from jaxpipe.checkpoint.below import checkpoint_below as checkpoint_below
from jaxpipe.checkpoint.below import checkpoints_below as checkpoints_below
from jaxpipe.checkpoint.below import newest_below as newest_below
from jaxpipe.checkpoint.checkpoints import Checkpoints as Checkpoints
from jaxpipe.checkpoint.checkpoints import Newest as Newest
from jaxpipe.checkpoint.contents import LogicalTree as LogicalTree
from jaxpipe.checkpoint.leaves import Leaves as Leaves
from jaxpipe.checkpoint.manifest import LayerSizes as LayerSizes
from jaxpipe.checkpoint.manifest import Manifest as Manifest
from jaxpipe.checkpoint.manifest import layer_sizes as layer_sizes
from jaxpipe.checkpoint.manifest import read_manifest as read_manifest
from jaxpipe.checkpoint.manifest import wrong_sizes as wrong_sizes
from jaxpipe.checkpoint.manifest import wrong_sums as wrong_sums
from jaxpipe.checkpoint.names import dotted as dotted
from jaxpipe.checkpoint.names import spelled as spelled
