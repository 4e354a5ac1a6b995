"""The command line."""

from jaxpipe.cli.main import main as main
