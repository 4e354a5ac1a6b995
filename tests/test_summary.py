"""A run's page: it says what the files say and needs nothing else; bad files do not stop it."""

import dataclasses
import html.parser
import json
import re
import xml.etree.ElementTree as xml
from typing import Any

import pytest
from pretended import a_config, after, pretended, trained

from jaxpipe import cli
from jaxpipe.config import Config, to_yaml
from jaxpipe.errors import ConfigError, Diverged
from jaxpipe.schedules import Costs, Lockstep, Timeline, one_f_one_b, simulate
from jaxpipe.summary import StepRecord, page, read_run, write_summary
from jaxpipe.summary.plot import Line, Plot, nice_ticks, svg, thinned

SCHEDULE, LOCKSTEP = one_f_one_b(3, 4), Lockstep("all")


def a_timeline(costs):
    """As if measured, in seconds."""
    return simulate(SCHEDULE, costs, LOCKSTEP)


def a_step(*timelines):
    return StepRecord(SCHEDULE, LOCKSTEP, (1e6, 2e6, 1e6), False, timelines, ("a", "b", "c"))


FAIR = a_timeline(Costs(F=[0.001, 0.002, 0.001], B=[0.002, 0.004, 0.002]))


@pytest.fixture
def folder(tmp_path):
    """The files of a run that was resumed, went back once, skipped a step and then diverged."""
    folder = tmp_path / "a <run>"
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(Config()))
    lines = [
        {"step": s, "loss": 5 - s / 10, "grad_norm": 1.0, "tokens_per_second": 9.0, "mfu": 0.4}
        for s in range(1, 31)
    ]
    lines[9] |= {"loss": None, "skipped": 1}
    lines.insert(20, {"step": 20, "held_out_loss": 3.5})
    text = "".join(json.dumps({"time": 1.7e9, **line}) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"step": 31, "lo')
    about = {"model": {"width": 128}, "mesh": {"pipe": 3}}
    events = [
        {"event": "started", "about": about, "data": "data: words", "changes": []},
        {"event": "ended", "ending": "interrupted", "seconds": {"step": 60.0, "compile": 30.0}},
        {"event": "started", "about": about, "changes": ["trainer.steps: 20 -> 30"]},
        {"event": "resumed", "step": 12},
        {"event": "rolled back", "step": 25, "to": 20, "problem": "a leap"},
        {"event": "ended", "ending": "Diverged", "problem": "loss < 0 & so on", "seconds": {}},
    ]
    text = "".join(json.dumps({"time": 1.7e9, **event}) + "\n" for event in events)
    (folder / "history.jsonl").write_text(text)
    devices = [{"count": 3, "kind": "X"}]
    (folder / "env.json").write_text(json.dumps({"git": None, "devices": devices}))
    a_step(FAIR).write(folder / "timeline.json")
    return folder


class Outside(html.parser.HTMLParser):
    """What a page would load or run, and the tags that it leaves open."""

    def __init__(self, text):
        super().__init__()
        self.open, self.found = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found += [tag] if tag in ("script", "link", "img", "iframe") else []
        self.found += [name for name, _ in attrs if name in ("src", "href")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        pass


def test_a_page_says_what_the_files_say_and_needs_nothing_else(folder):
    text = write_summary(folder).read_text()
    outside = Outside(text)
    assert outside.found == [] and outside.open == [] and "url(" not in text
    for part in (
        "<h1>a &lt;run&gt;</h1>", "Diverged", "loss &lt; 0 &amp; so on", "resumed from step 12",
        "rolled back to step 20: a leap", "changed: trainer.steps: 20 -&gt; 30",
        "1 step skipped", "<b>40.0%</b><span>MFU, median", "<b>3.5000</b><span>held-out loss",
        "Where the time went: 66.7% into training steps", "3 x X", "width 128",
        f"<b>{FAIR.bubble_fraction:.1%}</b><span>bubble, measured",
    ):  # fmt: skip
        assert part in text, part
    pictures = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(pictures) == 5  # loss, throughput, norm, MFU, the step; no learning rate was kept
    for picture in pictures:
        xml.fromstring(picture)
    assert "learning rate</title>" not in text.lower()


def test_a_step_that_was_not_measured_is_simulated_and_the_page_says_so(folder):
    a_step().write(folder / "timeline.json")
    text = page(read_run(folder))
    assert "No step was measured" in text and "bubble, measured" not in text
    assert f"<b>{a_step().planned.bubble_fraction:.1%}</b><span>bubble, simulated" in text


@pytest.mark.parametrize("name", ["metrics.jsonl", "history.jsonl", "env.json", "timeline.json"])
def test_files_that_are_damaged_or_missing_leave_the_rest(folder, name):
    for damage in (lambda: (folder / name).write_text("{\x00"), (folder / name).unlink):
        damage()
        assert Outside(page(read_run(folder))).open == []
    with pytest.raises(ConfigError, match=r"no config\.yaml"):
        read_run(folder.parent)


def test_a_step_is_the_same_after_a_file(tmp_path):
    step = a_step(FAIR, a_timeline(Costs(hop=0.5)))
    step.write(tmp_path / "step.json")
    assert StepRecord.read(tmp_path / "step.json") == step
    assert StepRecord.read(tmp_path / "nothing") is None


def test_a_rank_that_takes_more_than_its_flops_suggest_is_named():
    assert a_step(FAIR).slow_ranks() == []
    slow = a_timeline(Costs(F=[0.001, 0.006, 0.001], B=[0.002, 0.012, 0.002]))
    [words] = a_step(slow).slow_ranks()
    assert words.startswith("rank 1 on b (stage 1) takes 3.0 times what its FLOPs suggest")
    # One action that waited for a core makes no slow rank.
    late = max(FAIR.ends, key=lambda action: FAIR.ends[action])
    waited = Timeline(
        FAIR.starts, {**FAIR.ends, late: FAIR.ends[late] + 1.0}, FAIR.makespan + 1, 0.9, FAIR.held
    )
    assert a_step(waited).slow_ranks() == []


def test_plots_keep_what_stands_out_and_part_at_what_is_no_number():
    points: list[Any] = [(step, 1.0) for step in range(5000)]
    points[1234] = (1234, 9.0)
    points[2345] = (2345, None)
    kept = thinned(points)
    assert len(kept) < 700 and {(1234, 9.0), (2345, None)} <= set(kept)
    path = re.search(r'class="line line-0" d="([^"]*)"', svg(Plot("p", [Line("l", points)])))
    assert path and path[1].count("M") == 2 and "nan" not in path[1]
    assert svg(Plot("p", [Line("l", [(1, None)])])) == ""
    xml.fromstring(svg(Plot("a < b", [Line("l", [(1, 0.0)])])))
    for low, high in ((0.0, 1.0), (2.1, 5.5), (-3.0, 1e6), (1e-9, 3e-9), (7.0, 7.0)):
        ticks = nice_ticks(low, high, 5)
        assert len(ticks) <= 6 and all(low - 1e-6 <= tick <= high + 1e-6 for tick in ticks)


def test_a_run_leaves_a_page_however_it_ends(tmp_path, text, capsys):
    config, folder = a_config(tmp_path), tmp_path / "runs" / "run"
    trained(config, should_stop=after(3))
    assert "state stopped" in (folder / "summary.html").read_text()
    with pytest.raises(Diverged):
        trained(config, pretended(nan_at=5))
    diverged = (folder / "summary.html").read_text()
    assert "state failed" in diverged and "the loss of step 5 is nan" in diverged
    _, printed = trained(dataclasses.replace(config))
    finished = (folder / "summary.html").read_text()
    assert "state finished" in finished and "resumed from step 4" in finished
    assert "no measured timeline: the profile shows nothing" in printed
    assert f"summary: {folder / 'summary.html'}" in printed
    trace = json.loads((folder / "trace.json").read_text())
    assert "0F0" in {event["name"] for event in trace["traceEvents"]}
    (folder / "summary.html").unlink()
    assert cli.main(["summary", str(folder)]) == 0
    assert (folder / "summary.html").read_text() == finished
    assert cli.main(["summary", str(tmp_path)]) == 2
    assert "config.yaml" in capsys.readouterr().err
