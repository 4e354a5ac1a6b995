"""A run on one page: what it was, how it went, where its time went. Made from its files; no JAX."""

from jaxpipe.summary.page import page as page
from jaxpipe.summary.page import write_summary as write_summary
from jaxpipe.summary.record import STEP as STEP
from jaxpipe.summary.record import RunRecord as RunRecord
from jaxpipe.summary.record import read_run as read_run
from jaxpipe.summary.step import StepRecord as StepRecord
