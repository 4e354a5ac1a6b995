"""What XLA makes of a training step: nothing is copied in the loop, and nothing grows with it.

Read from the optimised program for CPU. Sizes of all dims differ, so that a shape tells what it is.
"""

import functools
import math
import re
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import pytest
from optimised import Instruction, Optimised, overlapping

import jaxpipe as jp
from jaxpipe.models import GPTConfig, gpt

RANKS, ROWS, TIME = 4, 2, 10
CONFIG = GPTConfig(vocab_size=56, width=24, num_layers=4, num_heads=3, sequence_length=TIME)
Link = tuple[int, int]


class Compiled(NamedTuple):
    engine: jp.Engine
    batch: Any
    program: Optimised
    memory: Any

    @property
    def temporary_bytes(self) -> int:
        """Without the batch, which the step keeps as it is and which grows with M by itself."""
        rows = sum(x.nbytes for x in jax.tree.leaves(self.batch))
        return self.memory.temp_size_in_bytes - rows


@functools.cache
def step(schedule: str, num_microbatches: int, data: int = 1) -> Compiled:
    model = jp.PipelineModule(gpt(CONFIG), jp.losses.cross_entropy)
    engine = jp.initialize(
        model, mesh=jp.make_mesh(pipe=RANKS, data=data), optimizer=optax.sgd(0.1),
        schedule=schedule, num_microbatches=num_microbatches,
    )  # fmt: skip
    ids = np.zeros((ROWS * num_microbatches * data, TIME), np.int32)
    batch = dict(inputs=ids, targets=ids)
    made = engine.compiled(engine.abstract_state(batch), batch)
    return Compiled(engine, batch, Optimised(made.as_text()), made.memory_analysis())


def rows_of_parameters(case: Compiled) -> set[tuple[int, ...]]:
    """Shapes of a rank's parameters, which are those of its gradients."""
    buffers = case.engine.abstract_state(case.batch).params.buffers.values()
    shapes = {b.shape[1:] for b in buffers}
    return shapes | {(1, *s) for s in shapes} | {(math.prod(s),) for s in shapes}


def is_stash(shape: tuple[int, ...], num_rows: int) -> bool:
    """Whether it is a row for each microbatch of something large."""
    return shape[:1] == (num_rows,) and math.prod(shape[1:]) > 100


schedules = pytest.mark.parametrize(
    "schedule", ["1f1b", "1f1b-eager", pytest.param("gpipe", marks=pytest.mark.slow)]
)


@schedules
def test_nothing_is_copied_in_the_loop(schedule: str):
    case = step(schedule, 8)
    plan = case.engine.program(case.batch)
    big = rows_of_parameters(case)
    copied = case.program.copied
    for each in copied:
        for shape in each.shapes:
            assert shape not in big, each.text
            # The stash and the mail are [slots, ...]; nothing that small else leads with a number.
            assert not is_stash(shape, plan.num_rows), each.text
            assert shape != (plan.num_mail + 1, ROWS, TIME, CONFIG.width), each.text
    # The loop does hold these buffers: were their shapes others, the test would see nothing.
    whiles = [shape for each in case.program.loop if each.op == "while" for shape in each.shapes]
    assert {b for b in big if len(b) == 2} & set(whiles)
    assert any(is_stash(shape, plan.num_rows) for shape in whiles)
    assert (plan.num_mail + 1, ROWS, TIME, CONFIG.width) in whiles or schedule == "gpipe"


def test_a_copy_would_be_seen():
    # `lax.cond` that returns a buffer copies it.
    def loop(buffer: Any, ticks: Any) -> Any:
        def tick(buffer: Any, on: Any) -> Any:
            write = lambda b: b.at[on % 3].set(b[0] + 1)
            return jax.lax.cond(on > 1, write, lambda b: b, buffer), buffer[0, 0]

        return jax.lax.scan(tick, buffer, ticks)

    made = jax.jit(loop).lower(np.ones((8, 300), "f"), np.arange(9)).compile()
    copied = Optimised(made.as_text() or "").copied
    assert any((8, 300) in each.shapes for each in copied)


HIDDEN = """
ENTRY %main (a: f32[8]) -> f32[8] {
  %start = ((f32[8]), f32[8]) collective-permute-start(%a), source_target_pairs={{0,1}}
  %next = ((f32[8]), f32[8]) collective-permute-start(%a), source_target_pairs={{1,0}}
  %guard = (u32[], f32[8]) while(%t), condition=%c, body=%b
  %done = f32[8] collective-permute-done(%start)
  ROOT %last = (u32[], f32[8]) while(%t), condition=%c, body=%b
  %late = f32[8] collective-permute-done(%next)
}
"""


def test_work_between_start_and_done_is_seen():
    instructions = Optimised(HIDDEN).computations["main"]
    beside = overlapping(instructions, "while")
    assert [[each.name for each in work] for work in beside.values()] == [
        ["guard"], ["guard", "last"],
    ]  # fmt: skip


def links_of(instruction: Instruction) -> tuple[Link, ...]:
    (pairs,) = re.findall(r"source_target_pairs=\{(.*?\})\}", instruction.text)
    return tuple((int(a), int(b)) for a, b in re.findall(r"\{(\d+),(\d+)\}", pairs + "}"))


@schedules
def test_ranks_meet_on_the_links_that_a_tick_uses_and_nowhere_else(schedule: str):
    case = step(schedule, 8)
    permutes = [each for each in case.program.loop if each.op.startswith("collective-permute")]
    permutes = [each for each in permutes if not each.op.endswith("done")]
    patterns = case.engine.program(case.batch).patterns
    assert sorted(map(links_of, permutes)) == sorted(
        permute.links for meeting in patterns for permute in meeting
    )
    # Nothing else travels in the loop, and activations alone.
    assert {each.shapes[0] for each in permutes} == {(ROWS, TIME, CONFIG.width)}
    others = [each.op for each in case.program.loop if re.match(r"all-|reduce-scatter", each.op)]
    assert not others


@pytest.mark.parametrize("data", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_parameters_are_never_gathered(data: int):
    gathers = ("all-gather", "all-to-all", "reduce-scatter")
    found = [e for e in step("1f1b", 8, data).program.everything if e.op.startswith(gathers)]
    assert [e.shapes for e in found] == [[(RANKS,)]]  # each rank's square, for the norm


def test_gradients_are_reduced_over_data_once_after_the_loop():
    case = step("1f1b", 8, 2)
    reduces = [each for each in case.program.everything if each.op.startswith("all-reduce")]
    reduces = [each for each in reduces if not each.op.endswith("done")]
    inside = {each.text for each in case.program.loop}
    assert not [each for each in reduces if each.text in inside]
    # Pairs of devices, or with newer versions of XLA the axis by its name.
    groups = r"replica_groups=(\{\{0,1\},\{2,3\},\{4,5\},\{6,7\}\}|mesh\[.*?\] \{'data'\})"
    over_data = [each for each in reduces if re.search(groups, each.text)]
    assert len(over_data) == 1
    reduced = sum(math.prod(shape) for each in over_data for shape in each.shapes)
    params = case.engine.abstract_state(case.batch).params.buffers.values()
    assert reduced == sum(math.prod(b.shape[1:]) for b in params)
    # The loss and the weight remain.
    rest = [each for each in reduces if each not in over_data]
    assert sum(math.prod(shape) for each in rest for shape in each.shapes) == 2


@pytest.mark.parametrize("schedule", ["1f1b", pytest.param("1f1b-eager", marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_microbatches(schedule: str):
    few, many = step(schedule, 8), step(schedule, 64)
    assert many.temporary_bytes <= 1.02 * few.temporary_bytes


def test_memory_of_gpipe_grows():
    assert step("gpipe", 64).temporary_bytes > 2 * step("gpipe", 8).temporary_bytes


@schedules
def test_the_program_does_not_grow_with_microbatches(schedule: str):
    few, many = (len(step(schedule, m).program.everything) for m in (8, 64))
    assert 0.98 < many / few < 1.02
