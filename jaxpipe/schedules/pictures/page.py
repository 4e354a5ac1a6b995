"""Charts as a page of HTML that needs nothing else: the SVG, with a tooltip for each bar."""

from collections.abc import Sequence
from html import escape

from jaxpipe.schedules.pictures.chart import Chart
from jaxpipe.schedules.pictures.svg import svg

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 14px/1.5 Helvetica, Arial, sans-serif; color: #222; margin: 24px }}
.picture {{ overflow-x: auto }}
.bar:hover rect {{ stroke: #000 }}
p {{ max-width: 60em }}
</style>
</head>
<body>
<div class="picture">
{picture}</div>
<p>Numbers in bars are microbatches; point at a bar for its stage and times. Grey is idle time.
Under each row: how many microbatches the rank holds between their forward and the end of their
backward, each of its stages counted.</p>
</body>
</html>
"""


def html(charts: Sequence[Chart]) -> str:
    """A page with one picture of all charts.

    Raises:
      ScheduleError: there is no chart, or their units differ.
    """
    picture = svg(charts)
    return _PAGE.format(title=escape("; ".join(chart.title for chart in charts)), picture=picture)
