"""Schedules in files: CSV in both directions, and what is said of files that cannot be read."""

import pytest

from jaxpipe.errors import ScheduleError
from jaxpipe.schedules import (
    NAMES,
    Action,
    Op,
    by_name,
    forward_only,
    load,
    one_f_one_b,
    place,
    save,
    vee,
    verify,
)
from jaxpipe.schedules.files import dump_csv, parse_csv

# Two chunks on each of two ranks, the backward split, in the notation of PyTorch 2.6 and later.
SPLIT = """\
0F0,,2F0,,,2I0,2W0,0I0,0W0
,1F0,,3F0,3I0,3W0,1I0,1W0,
"""


@pytest.mark.parametrize("num_microbatches", [1, 3, 8])
@pytest.mark.parametrize("name", NAMES)
def test_round_trip_of_the_rows(tmp_path, name, num_microbatches):
    schedule = by_name(name, 3, num_microbatches)
    for path in (tmp_path / f"{name}.csv", tmp_path / f"{name}.txt"):
        save(schedule, path)
        loaded = load(path)
        verify(loaded)
        assert loaded.rows == schedule.rows
        assert loaded.placement == schedule.placement
        assert loaded.name == name
        assert loaded.num_microbatches == num_microbatches
    assert load(tmp_path / f"{name}.txt") == schedule


def test_csv_is_written_as_pytorch_writes_it(tmp_path):
    save(one_f_one_b(2, 2), tmp_path / "x.CSV")
    assert (tmp_path / "x.CSV").read_bytes() == b"0F0,0F1,,0B0,,0B1\r\n,1F0,1B0,1F1,1B1,\r\n"


def test_cells_that_are_in_time_are_the_ticks():
    # The name is the caller's; gaps stay as they were drawn.
    schedule = parse_csv("0F0,,,,0B0\n,,1F0,1B0,\n", name="lazy")
    assert schedule.name == "lazy"
    assert schedule.num_ticks == 5
    verify(schedule)


def test_the_split_backward_and_placement_from_the_rows():
    schedule = parse_csv(SPLIT, name="split")
    verify(schedule)
    assert schedule.placement == (0, 1, 0, 1)
    assert schedule.rows[1][5] == Action(3, Op.W, 0)
    v_shape = forward_only(3, 4, placement=vee(3))
    assert parse_csv(dump_csv(v_shape), name="forward") == v_shape


def test_an_order_is_put_on_ticks():
    # Without bubbles, as PyTorch writes some schedules: cells say what follows what, no more.
    order = one_f_one_b(3, 5).order
    text = "\n".join(",".join(map(str, row)) for row in order)
    assert parse_csv(text, name="1f1b") == one_f_one_b(3, 5)


def test_a_forward_and_a_backward_that_overlap_follow_each_other():
    text = "0F0,(0F1;0B0)OVERLAP_F_B,0I1,0W1"
    [row] = parse_csv(text, name="x").rows
    assert [*map(str, row)] == ["0F0", "0F1", "0B0", "0I1", "0W1"]


def test_spaces_marks_of_byte_order_and_blank_lines_at_the_end(tmp_path):
    (tmp_path / "x.csv").write_bytes("\ufeff 0F0 ,0B0\r\n\r\n".encode())
    assert load(tmp_path / "x.csv").rows == ((Action(0, Op.F, 0), Action(0, Op.B, 0)),)


@pytest.mark.parametrize(
    "text, message",
    [
        ("0F0,0B0\n1F0,1X0", "x.csv: line 2, cell 2: '1X0' is not an action; expected"),
        ("0F0;0B0", "line 1, cell 1: '0F0;0B0' is not an action"),
        ("0F0,0SEND_F0", 'line 1, cell 2: .*Communication is made here.*format="compute_only"'),
        ("0F0,0UNSHARD", "line 1, cell 2: .*compute_only"),
        ("(0F0;0X0)OVERLAP_F_B", "line 1, cell 1: '0X0' is not an action"),
        ("0F0,0B0\n2F0,2B0", "stage 1 stands in no cell; expected stages 0 to 2"),
        ("", "there are no cells"),
        (",\n,,\n", "there are no cells"),
        ('"0F0', "not CSV"),
    ],
)
def test_csv_that_cannot_be_read(tmp_path, text, message):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(ScheduleError, match=message):
        load(tmp_path / "x.csv")


def test_text_that_cannot_be_read(tmp_path):
    (tmp_path / "x.txt").write_text("schedule x\n")
    with pytest.raises(ScheduleError, match=r"x.txt: line 1: 'schedule x'; expected `key: value`"):
        load(tmp_path / "x.txt")
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ScheduleError, match=r"x.csv is not a text file; expected UTF-8"):
        load(tmp_path / "x.csv")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.csv")


@pytest.mark.parametrize(
    "text, message",
    [
        # The stray cell is named, not the rank's other ones.
        ("0F0,1F1,,0B0\n,1F0,1B0", "rank 0, tick 1: 1F1 is on rank 0, but stage 1 is on rank 1"),
        ("0F0,0F0,,0B0\n,1F0,1B0,", "rank 0, tick 1: 0F0 ran at tick 0 already"),
        ("0F0,,\n,1F0,1B0", "rank 0, tick 0: stage 0 runs microbatch 0 as F; expected FB or FIW"),
        # Each waits for the other: what could run has run, and the message is about the rest.
        ("0F0,0B0,0F1,0B1\n1F0,1F1,1B0,1B1", r"rank 0, tick 2: 0B0 needs 1B0 \(rank 1, tick 3\)"),
        ("0F0,0B0\n,1F0\n2F0,2B0", "rank 1, tick 1: stage 1 runs microbatch 0 as F"),
    ],
)
def test_verify_points_at_the_wrong_cell(text, message):
    schedule = parse_csv(text, name="drawn")
    with pytest.raises(ScheduleError, match=message) as error:
        verify(schedule)
    assert "<-- here" in str(error.value)


def test_a_deadlock_leaves_what_runs_where_it_runs():
    schedule = parse_csv("0F0,0B0,0F1,0B1\n1F0,1F1,1B0,1B1", name="stuck")
    assert [" ".join(map(str, row)) for row in schedule.rows] == [
        "0F0 None 0B0 0F1 None 0B1",
        "None 1F0 1F1 1B0 1B1 None",
    ]


def test_a_name_that_is_no_text(tmp_path):
    order = [[Action(0, Op.F, 0)]]
    with pytest.raises(ScheduleError, match="cannot be written as text"):
        save(place(order, (0,), 1, name="a\nb"), tmp_path / "x.txt")
