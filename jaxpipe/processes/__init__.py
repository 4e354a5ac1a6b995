"""Many processes as one run: how they start, what they must have in common, how they end."""

from jaxpipe.processes.ending import INTERRUPTED as INTERRUPTED
from jaxpipe.processes.facts import code_facts as code_facts
from jaxpipe.processes.group import ALONE as ALONE
from jaxpipe.processes.group import Processes as Processes
from jaxpipe.processes.launch import Launch as Launch
from jaxpipe.processes.start import start_processes as start_processes
