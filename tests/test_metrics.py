"""Sinks, the console, the speed, and the report that feeds them."""

import io
import json
import logging
import math
from typing import Any

import pytest
import rich.console
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.record_writer import masked_crc32c

from jaxpipe.errors import Diverged, JaxpipeError
from jaxpipe.metrics import (
    JsonLines,
    LiveConsole,
    PlainConsole,
    Report,
    Sinks,
    StepWork,
    TensorBoard,
    Throughput,
    console_for,
    peak_flops,
)
from jaxpipe.metrics import Memory as UsedMemory


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def events_of(folder):
    """Every event of every file: records of length (8 bytes), its CRC, data, its CRC."""
    events = []
    for path in sorted(folder.glob("events*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            length = int.from_bytes(data[at : at + 8], "little")
            record = data[at + 12 : at + 12 + length]
            crc = int.from_bytes(data[at + 12 + length : at + 16 + length], "little")
            assert crc == masked_crc32c(record)
            events.append(Event.FromString(record))
            at += 16 + length
    return events


class Memory:
    """A sink that remembers, and fails where it is told to."""

    def __init__(self, fail_at=None):
        self.written, self.closed, self.fail_at = [], False, fail_at

    def write(self, step, scalars):
        if step == self.fail_at:
            raise OSError(28, "No space left on device")
        self.written.append((step, dict(scalars)))

    def close(self):
        self.closed = True


def test_json_lines_hold_numbers_exactly_and_null_for_what_is_none(tmp_path):
    sink = JsonLines(tmp_path / "metrics.jsonl")
    sink.write(1, {"loss": 0.1 + 0.2})
    assert lines_of(tmp_path / "metrics.jsonl")[0]["loss"] == 0.1 + 0.2  # there before it closes
    sink.write(2, {"loss": math.nan, "grad_norm": -math.inf})
    sink.close()
    lines = lines_of(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2]
    assert (lines[1]["loss"], lines[1]["grad_norm"]) == (None, None)
    assert lines[1]["time"] > 1.6e9
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_a_resumed_file_goes_on_from_its_step_and_drops_nothing(tmp_path):
    path = tmp_path / "metrics.jsonl"
    text = '{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 3, "lo'
    path.write_text(text)
    sink = JsonLines(path, resume_step=2)
    sink.write(3, {"loss": 1.0})
    sink.close()
    assert [line["step"] for line in lines_of(path)] == [1, 2, 3]
    dropped = (tmp_path / "metrics.jsonl.dropped").read_text()
    assert dropped == '{"step": 3}\n{"step": 3, "lo\n'


def test_a_file_that_ends_at_its_step_stays_as_it_is(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    JsonLines(path, resume_step=2).close()
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_tensorboard_events_hold_steps_and_values(tmp_path):
    sink = TensorBoard(tmp_path / "run")
    sink.write(10, {"loss": 2.5, "grad_norm": 0.5})
    values = {
        value.tag: (event.step, value.simple_value)
        for event in events_of(tmp_path / "run")
        for value in event.summary.value
    }
    assert values == {"loss": (10, 2.5), "grad_norm": (10, 0.5)}
    sink.close()


def test_tensorboard_is_told_where_a_run_resumes(tmp_path):
    TensorBoard(tmp_path, resume_step=20).close()
    starts = [event for event in events_of(tmp_path) if event.HasField("session_log")]
    assert [event.step for event in starts] == [21]


def test_a_failing_sink_warns_once_and_the_others_go_on(caplog):
    good, bad = Memory(), Memory(fail_at=2)
    sinks = Sinks({"TensorBoard": lambda: bad, "metrics.jsonl": lambda: good})
    with caplog.at_level(logging.WARNING):
        for step in (1, 2, 3):
            sinks.write(step, {"loss": 1.0})
        sinks.close()
    assert [step for step, _ in good.written] == [1, 2, 3]
    assert [step for step, _ in bad.written] == [1]
    assert good.closed
    assert bad.closed
    assert len(caplog.messages) == 1
    assert "TensorBoard failed" in caplog.messages[0]
    assert "No space left on device" in caplog.messages[0]


def test_a_sink_that_cannot_be_opened_is_left_out(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    good = Memory()
    openers = {"TensorBoard": lambda: TensorBoard(tmp_path / "file" / "run"), "good": lambda: good}
    sinks = Sinks(openers)
    sinks.write(1, {"loss": 1.0})
    assert good.written == [(1, {"loss": 1.0})]
    assert len(caplog.messages) == 1


def test_a_stream_that_is_no_terminal_gets_plain_lines():
    stream = io.StringIO()
    console = console_for(300, stream)
    assert isinstance(console, PlainConsole)
    console.note("rank 0 | F0")
    console.advance(9, 3.0)
    console.write(10, {"loss": 2.5, "learning_rate": 1e-3, "tokens_per_second": 12345.6})
    console.close()
    assert stream.getvalue() == (
        "rank 0 | F0\nstep  10/300  loss 2.5000  lr 1.00e-03  12,346 tokens/s\n"
    )


def test_a_terminal_gets_a_bar_and_drawings_in_one_piece():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    assert isinstance(console_for(300, Terminal(), {"TERM": "xterm"}), LiveConsole)
    for nobody in ({"CI": "true"}, {"SLURM_JOB_ID": "7"}, {"TERM": "dumb"}):
        assert isinstance(console_for(300, Terminal(), nobody), PlainConsole)
    stream = io.StringIO()
    terminal = rich.console.Console(file=stream, force_terminal=True, width=60, color_system=None)
    console = LiveConsole(300, terminal)
    drawing = "rank 0 | " + "F0 " * 40 + "[bold]"
    console.note(drawing)
    console.write(10, {"tokens_per_second": 12345.6})
    console.advance(11, 2.5)
    console.write(20, {"held_out_loss": 2.25})
    console.close()
    assert drawing in stream.getvalue()
    assert "11/300" in stream.getvalue()
    assert "loss 2.5000 12,346 tokens/s" in stream.getvalue()
    assert "step 20: held-out loss 2.2500" in stream.getvalue()


def test_the_speed_leaves_out_what_is_no_training():
    clock = iter([0.0, 10.0, 90.0, 100.0, 105.0]).__next__
    throughput = Throughput(clock)
    throughput.add(100)
    with throughput.paused():
        pass
    throughput.add(100)
    assert throughput.read() == 10.0  # 200 tokens in 100 - 80 seconds
    throughput.add(50)
    assert throughput.read() == 10.0  # 50 tokens in 5 seconds


class Lazy:
    """A number on a device: tells when it is read."""

    def __init__(self, value, log):
        self.value, self.log = value, log

    def __float__(self):
        self.log.append(self.value)
        return self.value


EIGHT_TOKENS = StepWork(8)


def a_report(sink, log_interval=1, work=EIGHT_TOKENS, stream=None, memory=None, **spikes):
    return Report(
        PlainConsole(9, io.StringIO() if stream is None else stream),
        Sinks({"memory": lambda: sink}),
        work=work,
        log_interval=log_interval,
        learning_rates=[0.1 * step for step in range(1, 30)],
        **spikes,
        memory=memory,
    )


def test_each_step_reads_the_step_before():
    log, sink = [], Memory()
    report = a_report(sink, most_skipped=1)
    for step, expected in [(1, [1.0]), (2, [1.0]), (3, [1.0, 2.0]), (4, [1.0, 2.0, 3.0])]:
        report.step(step, {"loss": Lazy(float(step), log), "grad_norm": 0.5, "skipped": 0})
        assert log == expected  # the first is read at once: it compiles
    with report.paused():
        assert log == [1.0, 2.0, 3.0, 4.0]
    assert [(step, scalars["loss"]) for step, scalars in sink.written] == [
        (1, 1.0),
        (2, 2.0),
        (3, 3.0),
        (4, 4.0),
    ]
    assert "tokens_per_second" not in sink.written[0][1]
    assert sink.written[2][1].keys() == {
        "loss",
        "learning_rate",
        "grad_norm",
        "tokens_per_second",
        "seconds",
    }
    assert sink.written[2][1]["learning_rate"] == pytest.approx(0.3)


def test_a_step_says_how_well_devices_are_used_and_what_each_layer_does():
    sink, console = Memory(), io.StringIO()
    work = StepWork(100, "samples", flops=6e9, peak=1e12, bubble=0.125)
    report = a_report(sink, work=work, stream=console, memory=lambda: UsedMemory("device", 3 << 29))
    norms = {"00_Embed": 0.3, "01_Head": 0.4}
    for step in (1, 2, 3):
        metrics = {"loss": 1.0, "grad_norm": 0.5, "skipped": 0, "layer_norms": norms}
        report.step(step, metrics)
    written = sink.written[-1][1]
    assert written["mfu"] == pytest.approx(written["samples_per_second"] / 100 * 6e9 / 1e12)
    assert (written["grad_norm/00_Embed"], written["grad_norm/01_Head"]) == (0.3, 0.4)
    assert written["device_memory_bytes"] == 3 << 29 and "bubble" not in written
    line = console.getvalue().splitlines()[-1]
    for part in (" samples/s  MFU ", "bubble 12.5%  1.5 GiB/device  ", " left"):
        assert part in line
    assert "Embed" not in line


def test_what_is_not_known_of_a_device_is_not_made_up():
    sink = Memory()
    report = a_report(sink, work=StepWork(8, flops=6e9, peak=peak_flops("cpu", "float32")))
    for step in (1, 2, 3):
        report.step(step, {"loss": 1.0, "grad_norm": 0.5, "skipped": 0})
    assert sink.written[-1][1]["tokens_per_second"] > 0 and "mfu" not in sink.written[-1][1]


def test_peaks_are_those_of_the_device_and_no_other():
    known = {
        "NVIDIA A100-SXM4-80GB": 312e12, "NVIDIA H100 80GB HBM3": 989.4e12,
        "NVIDIA H100 PCIe": 756.5e12, "NVIDIA H100 NVL": 835.5e12, "NVIDIA H200": 989.4e12,
        "NVIDIA B200": 2250e12, "NVIDIA L4": 121e12, "NVIDIA L40S": 362e12,
        "TPU v4": 275e12, "TPU v5 lite": 197e12, "TPU v5p": 459e12, "TPU v6 lite": 918e12,
        "Tesla V100-SXM2-16GB": None, "NVIDIA L40": None, "NVIDIA GB200": None, "cpu": None,
    }  # fmt: skip
    assert {kind: peak_flops(kind, "bfloat16") for kind in known} == known
    assert peak_flops("Tesla V100-PCIE-32GB", "float16") == 112e12
    assert peak_flops("NVIDIA A100-PCIE-40GB", "float32") == 156e12  # TF32


def test_lines_come_at_their_interval():
    sink = Memory()
    report = a_report(sink, log_interval=3)
    for step in range(1, 9):
        report.step(step, {"loss": 1.0, "grad_norm": 0.5, "skipped": 0})
    report.flush()
    assert [step for step, _ in sink.written] == [1, 3, 6]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_written_and_raised_with_its_step(loss):
    sink = Memory()
    report = a_report(sink, log_interval=5)
    report.step(1, {"loss": 1.0, "grad_norm": 0.5, "skipped": 0})
    with pytest.raises(Diverged, match=f"step 2 is {loss}$"):
        report.step(2, {"loss": loss, "grad_norm": 0.5, "skipped": 1})
    assert [step for step, _ in sink.written] == [1, 2]


def test_what_could_end_a_run_is_read_before_another_step_begins():
    report = a_report(Memory(), most_skipped=2)
    for step, loss, skipped in ((1, 2.0, 0), (2, 2.0, 0), (3, math.nan, 1), (4, math.nan, 2)):
        report.step(step, {"loss": loss, "grad_norm": 1, "skipped": skipped})
    with pytest.raises(
        Diverged, match="the loss of step 5 is nan, and the 2 steps before were skipped"
    ) as caught:
        report.step(5, {"loss": math.nan, "grad_norm": 1, "skipped": 3})
    assert (caught.value.step, caught.value.skipped, caught.value.exit_code) == (5, 3, 4)
    assert isinstance(caught.value, JaxpipeError) and isinstance(caught.value, FloatingPointError)


def test_layers_whose_gradients_are_not_finite_are_named():
    said = []
    for norms in (dict(a=1.0, b=math.nan, c=math.inf), dict(a=math.nan), {}):
        with pytest.raises(Diverged) as caught:
            metrics = {"loss": 1.0, "grad_norm": math.nan, "skipped": 1, "layer_norms": norms}
            a_report(Memory()).step(7, metrics)
        said.append(str(caught.value).removeprefix("the gradients of step 7 are not finite"))
    assert said == ["; those of b, c, of 3 layers", "; those of all layers", ""]


@pytest.mark.parametrize(("name", "option"), [("loss", "spike"), ("grad_norm", "norm_spike")])
def test_what_leaps_up_is_raised_once_there_is_enough_to_compare_with(name, option):
    numbers = [9.0, *[2.0] * 19, 5.9, 2.1, 6.5, 1.0]
    usual = {"loss": 0.5, "grad_norm": 0.5, "skipped": 0}
    spikes: dict[str, Any] = {option: 3.0}
    report, found = a_report(Memory(), log_interval=100, **spikes), None
    for step, number in enumerate(numbers, 1):
        try:
            report.step(step, usual | {name: number})
        except Diverged as error:
            found = error
            break
    assert found is not None and found.step == 23
    shown = name.replace("_", " ")
    assert str(found) == f"the {shown} of step 23 is 6.5, 3.2 times the median of the 20 before"
    resumed = a_report(Memory(), recent=report.recent(), **spikes)
    with pytest.raises(Diverged, match=r"step 24 is 7, 3\.5 times the median of the 20 before"):
        resumed.step(24, usual | {name: 7.0})
    quiet = a_report(Memory(), log_interval=100)
    for step, number in enumerate(numbers, 1):
        quiet.step(step, usual | {name: number})


def test_leaps_may_be_told_instead_once_each():
    told, numbers = [], [*[2.0] * 20, 9.0, 8.0, 2.0, 9.0, *[8.0] * 30, 25.0, 8.0]
    report = a_report(Memory(), spike=3.0, spiked=lambda step, problem: told.append(step))
    report._learning_rates = [0.1] * len(numbers)
    for step, number in enumerate(numbers, 1):
        report.step(step, {"loss": number, "grad_norm": 0.5, "skipped": 0})
    report.flush()
    assert told == [21, 24, 55]  # after many numbers of 8 that is what is usual


def test_a_held_out_loss_that_is_not_finite_is_raised():
    sink = Memory()
    report = a_report(sink)
    report.held_out(4, 2.0, bigram_loss=2.4)
    assert sink.written[0][1]["bigram_loss"] == 2.4
    with pytest.raises(Diverged, match="after step 5 is nan"):
        report.held_out(5, math.nan)
