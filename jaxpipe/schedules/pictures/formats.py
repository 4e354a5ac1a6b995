"""Which endings of a file's name ask for which picture."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from jaxpipe.schedules.pictures.chart import Chart
from jaxpipe.schedules.pictures.page import html
from jaxpipe.schedules.pictures.svg import svg
from jaxpipe.schedules.pictures.trace import trace

FORMATS: Mapping[str, Callable[[Sequence[Chart]], str]] = MappingProxyType(
    {".svg": svg, ".html": html, ".json": trace}
)
"""Ending -> function from charts to the file's text."""
