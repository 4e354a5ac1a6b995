"""Checkpoints that know layers, not stages."""

from jaxpipe.checkpoint.checkpoints import Checkpoints as Checkpoints
from jaxpipe.checkpoint.checkpoints import Newest as Newest
from jaxpipe.checkpoint.manifest import Manifest as Manifest
