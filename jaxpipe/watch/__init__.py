"""Time-outs of sections of work: what does not go on is written down, and ends."""

from jaxpipe.watch.hang import FILE as FILE
from jaxpipe.watch.hang import Hang as Hang
from jaxpipe.watch.hang import last_hang as last_hang
from jaxpipe.watch.watchdog import Watchdog as Watchdog
