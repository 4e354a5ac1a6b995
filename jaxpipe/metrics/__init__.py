"""Numbers on their way out: to a file, to TensorBoard and to the console."""

from jaxpipe.metrics.console import Console as Console
from jaxpipe.metrics.console import LiveConsole as LiveConsole
from jaxpipe.metrics.console import NoConsole as NoConsole
from jaxpipe.metrics.console import PlainConsole as PlainConsole
from jaxpipe.metrics.console import console_for as console_for
from jaxpipe.metrics.jsonl import JsonLines as JsonLines
from jaxpipe.metrics.report import Diverged as Diverged
from jaxpipe.metrics.report import Report as Report
from jaxpipe.metrics.sink import Sink as Sink
from jaxpipe.metrics.sink import Sinks as Sinks
from jaxpipe.metrics.tensorboard import TensorBoard as TensorBoard
from jaxpipe.metrics.throughput import Throughput as Throughput
