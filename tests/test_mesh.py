"""Which device takes which place of a mesh, and the table that shows it."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh

import jaxpipe as jp
from jaxpipe.devices import arrange, describe_grid

GOLDEN = Path(__file__).parent / "golden"


@dataclasses.dataclass(frozen=True)
class Pretended:
    """As much of a device as its place depends on."""

    id: int
    process_index: int = 0
    local_hardware_id: int | None = None
    platform: str = "gpu"
    device_kind: str = "H100"
    slice_index: int | None = None
    coords: tuple[int, ...] = ()
    core_on_chip: int = 0


def cluster(*sizes: int) -> list[Pretended]:
    """Processes with so many devices each, numbered one after the other."""
    pairs = [(process, i) for process, size in enumerate(sizes) for i in range(size)]
    return [Pretended(number, *pair) for number, pair in enumerate(pairs)]


def processes(grid: np.ndarray) -> list[Any]:
    return np.vectorize(lambda device: device.process_index, otypes=[int])(grid).tolist()


def test_tensor_is_innermost_and_pipe_crosses_processes():
    grid = arrange(cluster(4, 4)[::-1], (4, 1, 2))
    assert [[d.id for d in row.flat] for row in grid] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    grid = arrange(cluster(4, 4), (2, 2, 2))
    assert processes(grid) == [[[0, 0], [0, 0]], [[1, 1], [1, 1]]]


def test_devices_follow_their_order_in_the_machine_not_their_numbers():
    # Numbers are given out as processes come; the hardware is wired as its own numbers say.
    found = arrange([Pretended(i, 0, local_hardware_id=3 - i) for i in range(4)], (4, 1, 1))
    assert [d.id for d in found.flat] == [3, 2, 1, 0]


def test_processes_of_one_machine_lie_side_by_side():
    # One process for each GPU: `slice_index` tells machines apart.
    devices = [Pretended(i, process_index=i, slice_index=i % 2) for i in range(4)]
    assert [[d.id for d in row.flat] for row in arrange(devices, (2, 1, 2))] == [[0, 2], [1, 3]]


def test_a_group_that_does_not_fit_is_left_out_before_it_crosses():
    # Three of four devices each: the fourth stays idle.
    assert processes(arrange(cluster(4, 4), (2, 1, 3))) == [[[0, 0, 0]], [[1, 1, 1]]]
    # All twelve are needed in threes, so one group takes what three processes have left.
    assert processes(arrange(cluster(4, 4, 4), (4, 1, 3))) == [
        [[0, 0, 0]], [[0, 1, 2]], [[1, 1, 1]], [[2, 2, 2]],
    ]  # fmt: skip


@st.composite
def clusters(draw: st.DrawFn) -> tuple[list[Pretended], tuple[int, int, int]]:
    devices = cluster(*draw(st.lists(st.integers(1, 6), min_size=1, max_size=5)))
    tensor = draw(st.integers(1, len(devices)))
    data = draw(st.integers(1, len(devices) // tensor))
    pipe = draw(st.integers(1, len(devices) // tensor // data))
    return devices, (pipe, data, tensor)


@given(clusters(), st.randoms())
def test_a_mesh_has_different_devices_in_an_order_that_does_not_depend_on_theirs(case, random):
    devices, shape = case
    grid = arrange(devices, shape)
    assert grid.shape == shape
    assert len({d.id for d in grid.flat}) == grid.size
    shuffled = list(devices)
    random.shuffle(shuffled)
    assert (arrange(shuffled, shape) == grid).all()


@given(clusters())
def test_tensor_crosses_processes_only_where_it_must(case):
    devices, shape = case
    grid = arrange(devices, shape)
    groups = grid.reshape(-1, shape[-1])
    crossing = sum(len({d.process_index for d in group}) > 1 for group in groups)
    sizes = np.bincount([d.process_index for d in devices])
    room = int((sizes // shape[-1]).sum())
    assert crossing == max(0, len(groups) - room)
    warns = "tensor crosses processes" in describe_grid(grid)
    assert warns == bool(crossing)


@given(clusters())
def test_processes_follow_each_other_where_all_fit(case):
    devices, (pipe, data, tensor) = case
    order = [d.process_index for d in arrange(devices, (pipe, data, tensor))[..., 0].flat]
    assert order == sorted(order)


def test_tpus_are_left_to_jax():
    chips = [
        Pretended(i, platform="tpu", device_kind="TPU v5 lite", coords=(i % 4, i // 4, 0))
        for i in range(8)
    ]
    # A ring in a tray of two by four.
    ring = [d.coords for d in arrange(chips, (8, 1, 1)).flat]
    steps = [abs(a[0] - b[0]) + abs(a[1] - b[1]) for a, b in itertools.pairwise(ring)]
    assert steps == [1] * 7
    # Some of them, or of several slices: by number.
    assert [d.id for d in arrange(chips, (3, 1, 1)).flat] == [0, 1, 2]
    slices = [dataclasses.replace(chip, slice_index=chip.id // 4) for chip in chips]
    assert [d.id for d in arrange(slices, (8, 1, 1)).flat] == list(range(8))


def test_devices_of_the_callers_own_keep_their_order():
    devices = jax.devices()[:4][::-1]
    assert list(jp.make_mesh(2, 2, devices=devices).devices.flat) == devices
    assert [d.id for d in jp.make_mesh(2, 2).devices.flat] == [0, 1, 2, 3]


DRAWN = {
    "mesh_two_processes": (cluster(4, 4), (4, 2, 1)),
    "mesh_tensor_crosses": (cluster(3, 3), (1, 3, 2)),
    "mesh_two_kinds": (
        [Pretended(0, device_kind="H100"), Pretended(1, device_kind="A100")], (2, 1, 1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWN)
def test_tables_look_as_they_did(name: str):
    assert describe_grid(arrange(*DRAWN[name])) + "\n" == (GOLDEN / f"{name}.txt").read_text()


def test_a_mesh_is_shown_whatever_its_axes():
    text = jp.describe_mesh(jp.make_mesh(pipe=2, data=2))
    assert text.startswith("mesh: pipe 2 x data 2 x tensor 1, cpu, 1 process\n")
    assert "\npipe 1          0:2     0:3\n" in text
    turned = np.array(jax.devices()[:4]).reshape(2, 2).T
    mesh = Mesh(turned, ("data", "pipe"), axis_types=(AxisType.Auto,) * 2)
    assert jp.describe_mesh(mesh) == text
    alone = Mesh(np.array(jax.devices()[:2]), ("pipe",), axis_types=(AxisType.Auto,))
    assert "pipe 2 x data 1 x tensor 1" in jp.describe_mesh(alone)
