"""Training states on disk."""

from jaxpipe.checkpoint.orbax import Checkpoints as Checkpoints
