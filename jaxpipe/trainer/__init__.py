"""The trainer: from a configuration to a trained model, with all that belongs to a run."""

from jaxpipe.trainer.evaluate import evaluate as evaluate
from jaxpipe.trainer.loop import train as train
from jaxpipe.trainer.outcome import Outcome as Outcome
from jaxpipe.trainer.run import run as run
