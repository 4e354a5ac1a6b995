"""What a run says of itself: to the console, to files, to TensorBoard and Weights & Biases."""

from jaxpipe.metrics.compilation import Compilation as Compilation
from jaxpipe.metrics.compilation import CompilationTimes as CompilationTimes
from jaxpipe.metrics.compilation import watched_compilation as watched_compilation
from jaxpipe.metrics.console import Console as Console
from jaxpipe.metrics.console import LiveConsole as LiveConsole
from jaxpipe.metrics.console import NoConsole as NoConsole
from jaxpipe.metrics.console import PlainConsole as PlainConsole
from jaxpipe.metrics.console import console_for as console_for
from jaxpipe.metrics.environment import environment as environment
from jaxpipe.metrics.heartbeat import heartbeat as heartbeat
from jaxpipe.metrics.heartbeat import in_words as in_words
from jaxpipe.metrics.history import History as History
from jaxpipe.metrics.jsonl import JsonLines as JsonLines
from jaxpipe.metrics.log_file import LogFile as LogFile
from jaxpipe.metrics.memory import Memory as Memory
from jaxpipe.metrics.memory import memory_peak as memory_peak
from jaxpipe.metrics.peaks import peak_flops as peak_flops
from jaxpipe.metrics.report import Report as Report
from jaxpipe.metrics.sink import Sink as Sink
from jaxpipe.metrics.sink import Sinks as Sinks
from jaxpipe.metrics.tensorboard import TensorBoard as TensorBoard
from jaxpipe.metrics.throughput import Throughput as Throughput
from jaxpipe.metrics.time_account import TimeAccount as TimeAccount
from jaxpipe.metrics.weights_and_biases import WeightsAndBiases as WeightsAndBiases
from jaxpipe.metrics.work import StepWork as StepWork
