"""Which devices meet in a training step, how often and over how many bytes; and what each holds.

Read from the optimised program for CPU.
"""

import functools
import itertools
import math
import re
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import pytest
from optimised import Instruction, Optimised

import jaxpipe as jp
from jaxpipe import nn
from jaxpipe.models import GPTConfig, gpt
from jaxpipe.storage import Layout, parts

TIME, MICROBATCHES = 6, 4
CONFIG = GPTConfig(vocab_size=32, width=16, num_layers=2, num_heads=4, sequence_length=TIME)
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
ZEROS: dict[str, int | jp.Zero] = {
    "0": 0,
    "1": 1,
    "2": 2,
    "3": 3,
    "3 per use": jp.Zero(3, per="use"),
}
ZEROS["2 per use"] = jp.Zero(2, per="use")


class Meeting(NamedTuple):
    in_loop: bool
    kind: str
    axes: tuple[str, ...]


class Compiled(NamedTuple):
    engine: jp.Engine
    batch: Any
    program: Optimised
    memory: Any

    @property
    def parameters(self) -> Layout:
        return self.engine.abstract_state(self.batch).params.layout

    @property
    def state(self) -> Layout:
        placed = self.engine.abstract_state(self.batch).opt_state
        assert placed is not None
        return placed.layout


@functools.cache
def made(zero: str, tensor: int = 1, schedule: str = "1f1b") -> tuple[jp.Engine, Any]:
    """An engine and a batch for it."""
    model = jp.PipelineModule(gpt(CONFIG), nn.cross_entropy)
    engine = jp.initialize(
        model, mesh=jp.make_mesh(pipe=2, data=2, tensor=tensor), optimizer=optax.adam(1e-3),
        schedule=schedule, num_microbatches=MICROBATCHES, zero=ZEROS[zero],
    )  # fmt: skip
    ids = np.zeros((4 * MICROBATCHES, TIME), np.int32)
    return engine, dict(inputs=ids, targets=ids)


@functools.cache
def step(zero: str, tensor: int = 1, schedule: str = "1f1b") -> Compiled:
    engine, batch = made(zero, tensor, schedule)
    program = engine.compiled(engine.abstract_state(batch), batch)
    return Compiled(engine, batch, Optimised(program.as_text()), program.memory_analysis())


def axes_of(text: str, sizes: dict[str, int]) -> tuple[str, ...]:
    """The mesh axes over which an instruction's devices meet."""
    if named := re.search(r"replica_groups=mesh\[[^\]]*\] \{([^}]*)\}", text):
        return tuple(sorted(re.findall(r"'(\w+)'", named[1])))
    grid = np.arange(math.prod(sizes.values())).reshape(*sizes.values())
    if "source_target_pairs" in text:
        pairs = re.findall(r"\{(\d+),(\d+)\}", text.split("source_target_pairs")[1])
        moved = {
            axis
            for a, b in pairs
            for axis, i, j in zip(
                sizes, np.argwhere(grid == int(a))[0], np.argwhere(grid == int(b))[0], strict=True
            )
            if i != j
        }
        return tuple(sorted(moved))
    listed = re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", text)
    assert listed, text
    groups = {frozenset(map(int, g.split(","))) for g in re.findall(r"\{([\d,]+)\}", listed[1])}
    for count in range(1, len(sizes) + 1):
        for axes in itertools.combinations(sizes, count):
            rest = [i for i, axis in enumerate(sizes) if axis not in axes]
            own = [i for i, axis in enumerate(sizes) if axis in axes]
            rows = grid.transpose(*rest, *own).reshape(-1, math.prod(grid.shape[i] for i in own))
            if groups == {frozenset(map(int, row)) for row in rows}:
                return tuple(sorted(axes))
    raise AssertionError(text)


def meetings(case: Compiled, tensor: int = 1) -> dict[Meeting, tuple[int, int]]:
    """How many instructions of each sort there are, and how many elements they give in all."""
    sizes = {a: n for a, n in dict(pipe=2, data=2, tensor=tensor).items() if n > 1}
    looped = {each.name for each in case.program.loop}
    found: dict[Meeting, tuple[int, int]] = {}

    def elements(each: Instruction) -> int:
        return sum(map(math.prod, each.shapes))

    for each in case.program.everything:
        if each.op in KINDS:
            sort = Meeting(each.name in looped, each.op, axes_of(each.text, sizes))
            count, total = found.get(sort, (0, 0))
            found[sort] = count + 1, total + elements(each)
    return found


def whole_elements(layout: Layout) -> int:
    return sum(spec.part_size * spec.parts for spec in layout.buffers.values())


QUICK = {"0": "1f1b", "1": "zb-h1", "2": "1f1b", "3": "zb-h1"}
MORE = [("0", "zb-h1"), ("1", "1f1b"), *itertools.product("23", ("1f1b", "zb-h1"))]


@pytest.mark.parametrize(
    ("zero", "schedule"),
    [
        *[("0", "1f1b"), ("1", "zb-h1")],
        *[pytest.param(*case, marks=pytest.mark.slow) for case in MORE],
    ],
)
def test_data_ranks_meet_once_a_step(zero: str, schedule: str):
    case = step(zero, schedule=schedule)
    found = meetings(case)
    size = whole_elements(case.parameters)
    over_data = {sort: n for sort, n in found.items() if sort.axes == ("data",)}
    if zero == "0":
        assert over_data == {Meeting(False, "all-reduce", ("data",)): (1, size)}
    else:
        assert over_data == {
            Meeting(False, "reduce-scatter", ("data",)): (1, size // 2),
            Meeting(False, "all-gather", ("data",)): (1, size),
        }
    others = {sort: n for sort, n in found.items() if sort not in over_data}
    permutes = {sort for sort in others if sort.kind == "collective-permute"}
    assert permutes == {Meeting(True, "collective-permute", ("pipe",))}
    scalars = {sort: n for sort, n in others.items() if sort not in permutes}
    norm = ("pipe",) if zero == "0" else ("data", "pipe")
    totals = Meeting(False, "all-reduce", ("data", "pipe"))
    # Loss and weight; and each device's square, for the norm.
    assert scalars == {totals: (1, 2), Meeting(False, "all-gather", norm): (1, 2 ** len(norm))}


@pytest.mark.parametrize("zero", [pytest.param("2 per use", marks=pytest.mark.slow), "3 per use"])
def test_data_ranks_meet_at_each_use_where_they_are_asked_to(zero: str):
    found = meetings(step(zero))
    size = whole_elements(step(zero).parameters)
    over_data = {sort: n for sort, n in found.items() if sort.axes == ("data",)}
    kinds = {(sort.in_loop, sort.kind) for sort in over_data}
    gathers = {(zero == "3 per use", "all-gather")}
    assert kinds == {(True, "reduce-scatter"), *gathers}
    # One call a stage and action: F and B of one stage, and the last stage's in one.
    count, _ = over_data[Meeting(True, "reduce-scatter", ("data",))]
    assert count == 2
    if zero == "3 per use":
        assert over_data[Meeting(True, "all-gather", ("data",))][0] == 3
    else:
        assert over_data[Meeting(False, "all-gather", ("data",))] == (1, size)


def test_tensor_ranks_meet_only_where_layers_say():
    found = meetings(step("1", tensor=2), tensor=2)
    over_tensor = {sort: n[0] for sort, n in found.items() if "tensor" in sort.axes}
    norm = Meeting(False, "all-gather", ("data", "pipe", "tensor"))
    assert over_tensor.pop(norm) == 1
    assert set(over_tensor) == {Meeting(True, "all-reduce", ("tensor",))}
    over_data = {sort: n for sort, n in found.items() if sort.axes == ("data",)}
    assert {(sort.kind, sort.in_loop): n[0] for sort, n in over_data.items()} == {
        ("reduce-scatter", False): 1, ("all-gather", False): 1
    }  # fmt: skip


def quick(zero: str) -> Compiled:
    """What the other tests have compiled: arguments are the same with any schedule."""
    return step(zero, schedule=QUICK[zero]) if zero in QUICK else step(zero)


def argument_bytes(zero: str) -> int:
    return quick(zero).memory.argument_size_in_bytes


@pytest.mark.parametrize(
    "zero", ["1", *[pytest.param(zero, marks=pytest.mark.slow) for zero in "23"], "3 per use"]
)
def test_bytes_of_a_device_fall_by_the_data_degree(zero: str):
    params, state = quick("0").parameters.bytes_per_rank, quick("0").state.bytes_per_rank
    assert state >= 2 * params
    halved = state + params if zero.startswith("3") else state
    saved = argument_bytes("0") - argument_bytes(zero)
    assert saved == pytest.approx(halved / 2, abs=0.02 * params)


@functools.cache
def gradient_bytes(zero: str) -> tuple[int, int]:
    """(what a device holds of the gradients after `value_and_grad`, temporaries of it).

    Where a stage is more than what travels in one call, as the large ones are.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "LARGE", 2048)
        engine, batch = made.__wrapped__(zero)
        params = engine.abstract_state(batch).params
        key = jax.eval_shape(lambda: jax.random.key(0))
        program = jax.jit(engine.value_and_grad).lower(params, batch, key).compile()
    memory = program.memory_analysis()
    assert memory is not None
    return memory.output_size_in_bytes, memory.temp_size_in_bytes


@pytest.mark.parametrize(
    "zero", ["3", *[pytest.param(zero, marks=pytest.mark.slow) for zero in ("2", "2 per use")]]
)
def test_gradients_fall_by_the_data_degree_too(zero: str):
    whole, _ = gradient_bytes("1")
    assert gradient_bytes(zero)[0] == pytest.approx(whole / 2, rel=0.02)


def test_what_is_put_together_at_each_use_is_never_whole():
    (half, per_step), (_, per_use) = gradient_bytes("3"), gradient_bytes("3 per use")
    # Neither accumulators nor weights, half of each.
    assert per_step - per_use > 0.5 * (2 * half)
