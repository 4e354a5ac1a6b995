"""Programs: replayed in plain Python, every action finds just the value that it needs."""

import random
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zoo import largest_error, linen, vectors

import jaxpipe as jp
from jaxpipe.errors import ScheduleError
from jaxpipe.executor.lower import lower
from jaxpipe.executor.program import FUSED, IDLE, NOWHERE, B, F, I, Program, W
from jaxpipe.schedules import (
    Action,
    Lockstep,
    Op,
    Schedule,
    forward_only,
    loop,
    place,
    simulate,
    vee,
)
from jaxpipe.schedules.meetings import Permute
from jaxpipe.schedules.table import needs, parse_action

Value = tuple[str, int, int]  # "y" or "dy" of (stage, microbatch)
FIRST_LAYERS = range(0, 300, 3)


class Replay:
    """Runs the integers of a program on names of values in place of arrays."""

    def __init__(
        self, program: Program, schedule: Schedule, codes: Sequence[int], always: bool = False
    ):
        ranks = range(program.num_ranks)
        self.program, self.schedule, self.codes, self.always = program, schedule, codes, always
        self.mail: list[dict[int, Value]] = [{} for _ in ranks]
        self.stash: list[dict[int, Any]] = [{} for _ in ranks]
        self.left: list[dict[int, Any]] = [{} for _ in ranks]
        self.ahead: list[Value | None] = [None for _ in ranks]
        self.back: list[Value | None] = [None for _ in ranks]
        self.done: list[Action] = []
        self.most_held = [0 for _ in ranks]
        for tick in range(program.num_ticks):
            before = list(self.ahead), list(self.back)
            for rank in ranks:
                self.act(tick, rank)
            self.deliver(tick, *(before if program.latency else (self.ahead, self.back)))

    def cell(self, column: str, tick: int, rank: int) -> int:
        return int(self.program.table[column][tick, rank])

    def act(self, tick: int, rank: int) -> None:
        get = lambda column: self.cell(column, tick, rank)
        if get("branch") == IDLE:
            return
        op, code = self.program.branches[get("branch") - 1]
        stage, m, row = FIRST_LAYERS.index(get("layer")), get("microbatch"), get("row")
        assert self.schedule.placement[stage] == rank and self.codes[stage] == code
        is_last = stage == self.schedule.num_stages - 1
        arrived = self.mail[rank].get(get("read"))
        if op in (F, FUSED):
            assert stage == 0 or arrived == ("y", stage - 1, m)
        elif op != W and not is_last:
            assert arrived == ("dy", stage + 1, m)
        if op == F:
            self.put(rank, get("keep"), ("y", stage, m))
            if not is_last:
                self.ahead[rank] = ("y", stage, m)
            if self.trains:
                assert 0 <= row < self.program.num_rows and row not in self.stash[rank]
                self.stash[rank][row] = (stage, m)
                self.most_held[rank] = max(self.most_held[rank], len(self.stash[rank]))
        elif op != W:
            self.put(rank, get("keep"), ("dy", stage, m))
            if stage:
                self.back[rank] = ("dy", stage, m)
        if op == I:
            assert self.stash[rank][row] == (stage, m) and 0 <= get("left") < self.program.num_left
            assert self.left[rank].setdefault(get("left"), (stage, m)) == (stage, m)
        if op == W:
            assert self.left[rank].pop(get("left")) == (stage, m)
        if op in (B, W):
            assert self.stash[rank].pop(row) == (stage, m)
        ops = (Op.F, Op.B) if op == FUSED else (Op(op),)
        self.done += [Action(stage, each, m) for each in ops]

    @property
    def trains(self) -> bool:
        return any(op != F for op, _ in self.program.branches)

    def deliver(
        self, tick: int, ahead: Sequence[Value | None], back: Sequence[Value | None]
    ) -> None:
        arrivals: list[dict[int, Value | None]] = []
        for permute in self.program.patterns[self.program.pattern[tick]]:
            sources, targets = zip(*permute.links, strict=True)
            assert len(set(sources)) == len(sources) and len(set(targets)) == len(targets)
            sent = ahead if permute.forwards else back
            arrivals.append({b: sent[a] for a, b in permute.links})
        for column, arrived in zip(self.program.arrivals, arrivals, strict=False):
            for rank in range(self.program.num_ranks):
                slot = self.cell(column, tick, rank)
                # Who is on a link has a use for what comes, unless all links are used always;
                # nobody waits for what does not come.
                assert slot == NOWHERE or rank in arrived
                assert self.always or slot != NOWHERE or rank not in arrived
                self.put(rank, slot, arrived.get(rank))
        for column in self.program.arrivals[len(arrivals) :]:
            assert (self.program.table[column][tick] == NOWHERE).all()

    def put(self, rank: int, slot: int, value: Value | None) -> None:
        if slot != NOWHERE:
            assert value is not None and 0 <= slot < self.program.num_mail
            self.mail[rank][slot] = value


def replay(
    schedule: Schedule, *, fuse: bool = False, num_codes: int = 100, always: bool = False
) -> Replay:
    codes = [min(stage, num_codes - 1) for stage in range(schedule.num_stages)]
    first_layers = FIRST_LAYERS[: schedule.num_stages]
    program = lower(schedule, codes, first_layers, fuse=fuse, always=always)
    assert program.num_ticks == schedule.num_ticks and program.num_ranks == schedule.num_ranks
    run = Replay(program, schedule, codes, always)
    assert sorted(run.done) == sorted(schedule.ticks())
    assert program.held == simulate(schedule).held
    return run


def random_schedule(seed: int, placement: tuple[int, ...], m: int, latency: int) -> Schedule:
    """Any order that does not deadlock: actions drawn one by one from those that can run.

    Some backwards are whole, some are split.
    """
    rng, num_stages = random.Random(seed), len(placement)
    order: list[list[Action]] = [[] for _ in set(placement)]
    waiting = {
        Action(s, op, i)
        for s in range(num_stages)
        for i in range(m)
        for op in rng.choice([(Op.F, Op.B), (Op.F, Op.I, Op.W)])
    }
    while waiting:
        can = [
            action
            for action in sorted(waiting)
            if not any(set(group) & waiting for group in needs(action, num_stages))
        ]
        action = rng.choice(can)
        order[placement[action.stage]].append(action)
        waiting.remove(action)
    return place(order, placement, m, name="random", latency=latency)


named = st.sampled_from(("gpipe", "1f1b", "1f1b-eager"))


@given(named, st.integers(1, 8), st.integers(1, 20), st.booleans(), st.integers(1, 9))
def test_known_schedules(name: str, ranks: int, m: int, fuse: bool, num_codes: int):
    replay(jp.schedules.by_name(name, ranks, m), fuse=fuse, num_codes=num_codes)


placements = st.builds(loop, st.integers(1, 4), st.integers(1, 3)) | st.builds(
    vee, st.integers(1, 4)
)


@settings(deadline=None)
@given(
    st.integers(0, 10**6), placements, st.integers(1, 5), st.integers(0, 1), st.booleans(),
    st.booleans(),
)  # fmt: skip
def test_any_schedule(seed: int, placement: Any, m: int, latency: int, fuse: bool, always: bool):
    program = replay(random_schedule(seed, placement, m, latency), fuse=fuse, always=always).program
    assert not always or len(program.patterns) == 1


@given(placements, st.integers(1, 8))
def test_forward_only_schedules(placement: tuple[int, ...], m: int):
    ranks = len(set(placement))
    run = replay(forward_only(ranks, m, placement=placement))
    assert run.program.num_rows == 0 and run.most_held == [0] * ranks


@given(named, st.integers(1, 8), st.integers(1, 20))
def test_a_rank_keeps_what_the_simulation_says(name: str, ranks: int, m: int):
    schedule = jp.schedules.by_name(name, ranks, m)
    run = replay(schedule)
    assert tuple(run.most_held) == simulate(schedule).held
    assert run.program.num_rows == max(run.most_held)


@pytest.mark.parametrize("name", ["1f1b", "1f1b-eager"])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_buffers_do_not_grow_with_microbatches(name: str, ranks: int):
    few, many = (replay(jp.schedules.by_name(name, ranks, m)).program for m in (8, 64))
    assert (few.num_mail, few.num_rows) == (many.num_mail, many.num_rows)
    assert few.patterns == many.patterns


def test_a_last_stage_whose_b_follows_its_f_may_keep_nothing():
    schedule = jp.schedules.one_f_one_b(4, 8)
    plain, fused = replay(schedule), replay(schedule, fuse=True)
    assert plain.most_held == [4, 3, 2, 1] and fused.most_held == [4, 3, 2, 0]
    assert FUSED in dict(fused.program.branches) and FUSED not in dict(plain.program.branches)
    gpipe = replay(jp.schedules.gpipe(4, 8), fuse=True)  # here B does not follow F
    assert FUSED not in dict(gpipe.program.branches)


def test_alike_stages_share_branches():
    program = replay(jp.schedules.one_f_one_b(4, 4), num_codes=2).program
    assert program.branches == ((F, 0), (F, 1), (B, 0), (B, 1))


def test_only_links_that_a_tick_uses_are_in_its_meeting():
    program = replay(jp.schedules.one_f_one_b(2, 3)).program
    links = [program.patterns[p] for p in program.pattern]
    forth, back = Permute(True, ((0, 1),)), Permute(False, ((1, 0),))
    # The second activation waits in its outbox until the first gradient is there.
    assert links == [(forth,), (), (back, forth)[::-1], (), (forth, back), (), (back,), ()]


def test_a_program_can_be_read():
    shown = str(replay(jp.schedules.one_f_one_b(2, 2)).program)
    assert shown.startswith("program 1f1b: 6 ticks, 2 ranks, 1 mail slots, 2 stash rows")
    assert shown.count("\n") == 4 + 6


def test_a_wrong_schedule_is_not_lowered():
    rows = ((Action(0, Op.F, 0), None), (Action(1, Op.F, 0), Action(1, Op.B, 0)))
    with pytest.raises(ScheduleError):
        lower(Schedule("wrong", (0, 1), 1, rows), [0, 1], [0, 1])


# --- Through the engine ---------------------------------------------------------------------------


def interleaved() -> Schedule:
    """Two chunks on each of two ranks, two microbatches, written by hand."""
    order = """
    0F0 0F1 2F0 2F1 2B0 2B1 0B0 0B1
    1F0 1F1 3F0 3B0 3F1 3B1 1B0 1B1
    """
    return by_hand(order, loop(2, 2), "interleaved")


def veed() -> Schedule:
    """Down and up again: rank 0 has the first and the last stage."""
    order = """
    0F0 0F1 3F0 3B0 3F1 3B1 0B0 0B1
    1F0 2F0 1F1 2F1 2B0 1B0 2B1 1B1
    """
    return by_hand(order, vee(2), "vee")


def by_hand(text: str, placement: tuple[int, ...], name: str) -> Schedule:
    order = [[parse_action(cell) for cell in row.split()] for row in text.strip().splitlines()]
    return place(order, placement, 2, name=name)


@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_meetings_that_are_alike_at_every_tick_give_the_same_gradients(
    monkeypatch: pytest.MonkeyPatch, ranks: int
):
    # As on accelerators: see `lockstep_on`.
    monkeypatch.setattr("jaxpipe.machine.lockstep_on", lambda *_: Lockstep("all", steady=True))
    model, batch = linen(4), vectors(8)
    engine = jp.initialize(
        model, mesh=jp.make_mesh(pipe=ranks), schedule="1f1b-eager", num_microbatches=4,
        fill=float("nan"),
    )  # fmt: skip
    state = engine.init(jax.random.key(0), batch)
    assert len(engine.program(batch).patterns) == 1
    loss, grads = engine.value_and_grad(state.params, batch)
    want = jax.jit(jax.value_and_grad(model.loss))(engine.logical(state.params), batch)
    np.testing.assert_allclose(loss, want[0], rtol=1e-6)
    assert largest_error(engine.logical(grads), want[1]) < 1e-6


@pytest.mark.parametrize("make", [interleaved, pytest.param(veed, marks=pytest.mark.slow)])
def test_a_schedule_of_ones_own_runs(make: Any):
    schedule, model, batch = make(), linen(4), vectors(4)
    replay(schedule)
    engine = jp.initialize(model, mesh=jp.make_mesh(pipe=2), schedule=schedule, fill=float("nan"))
    assert engine.partition(batch).num_stages == 4
    state = engine.init(jax.random.key(0), batch)
    params = engine.logical(state.params)
    loss, grads = engine.value_and_grad(state.params, batch)
    want_loss, want = jax.jit(jax.value_and_grad(model.loss))(params, batch)
    np.testing.assert_allclose(loss, want_loss, rtol=1e-6)
    assert largest_error(engine.logical(grads), want) < 1e-6
    np.testing.assert_allclose(engine.eval_batch(state, batch)["loss"], want_loss, rtol=1e-6)
