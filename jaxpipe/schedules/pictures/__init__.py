"""Schedules and timelines as pictures: SVG, a page of HTML, a trace for Perfetto."""

from jaxpipe.schedules.pictures.bars import Bar as Bar
from jaxpipe.schedules.pictures.bars import bars_of_ticks as bars_of_ticks
from jaxpipe.schedules.pictures.bars import bars_of_times as bars_of_times
from jaxpipe.schedules.pictures.bars import held_steps as held_steps
from jaxpipe.schedules.pictures.chart import Chart as Chart
from jaxpipe.schedules.pictures.chart import chart_of_ticks as chart_of_ticks
from jaxpipe.schedules.pictures.chart import chart_of_times as chart_of_times
from jaxpipe.schedules.pictures.chart import charts_of_measured as charts_of_measured
from jaxpipe.schedules.pictures.formats import FORMATS as FORMATS
from jaxpipe.schedules.pictures.page import html as html
from jaxpipe.schedules.pictures.svg import svg as svg
from jaxpipe.schedules.pictures.trace import trace as trace
