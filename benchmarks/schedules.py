"""Schedules on two ranks and two cores, where idle time costs: measured beside simulated.

    python benchmarks/schedules.py --rounds 20

All schedules are compiled in one process, and every round runs a step of each, so that a noisy
machine is noisy for all; ratios are taken within a round, to the first schedule, and their medians
are printed. "makespan" is a step from its first action to its last, by its profile; "simulated" is
the schedule in lockstep with what ops, ticks and meetings took in those very steps: it says whether
the simulator knows where a schedule's time goes. "compile" is to the first schedule with as many
stages on a rank. Seven blocks and a head about as heavy as a block make two or four equal stages.
"""

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from workload import arguments, build, build_engine, simulate_cpus

SCHEDULES = (
    "1f1b",
    "gpipe",
    "1f1b-eager",
    "interleaved",
    "zb-h1",
    "zb-h2",
    "interleaved-zb",
    "zb-v",
    "v-half",
    "auto",
)


@dataclasses.dataclass
class Contestant:
    """A schedule, compiled, with what it has been measured to take."""

    engine: Any
    state: Any
    batch: Any
    compiled: Any
    compile: float
    steps: list[float] = dataclasses.field(default_factory=list)
    timelines: list[Any] = dataclasses.field(default_factory=list)

    def step(self) -> None:
        """One step by the clock."""
        import jax

        start = time.perf_counter()
        self.state, _ = jax.block_until_ready(self.compiled(self.state, self.batch))
        self.steps.append(time.perf_counter() - start)

    def observe(self) -> None:
        """One step by its profile."""
        self.state, _, timeline = self.engine.timeline(self.state, self.batch)
        self.timelines.append(timeline)

    @property
    def makespans(self) -> list[float]:
        """Of the steps that were observed."""
        return [timeline.makespan for timeline in self.timelines]

    @property
    def simulated(self) -> float:
        """The makespan that the simulator tells."""
        from jaxpipe.schedules import measured_costs, simulate

        table = self.engine.schedule
        costs = measured_costs(table, self.timelines)
        return simulate(table, costs, self.engine.lockstep).makespan


def compete(name: str, options: argparse.Namespace) -> Contestant:
    """Compiles a schedule."""
    import jax
    import optax

    model, batch = build(options)
    options = argparse.Namespace(**vars(options) | dict(schedule=name))
    engine = build_engine(options, model, optax.adamw(3e-4))
    state = engine.init(jax.random.key(0), batch)
    start = time.perf_counter()
    compiled = engine.compiled(state, batch)
    spent = time.perf_counter() - start
    batch = jax.device_put(batch, compiled.input_shardings[0][1])
    print(f"{name}: {engine.schedule.name}, compiled in {spent:.1f} s", file=sys.stderr, flush=True)
    return Contestant(engine, state, batch, compiled, spent)


def ratio(mine: Sequence[float], others: Sequence[float]) -> float:
    """The median of ratios taken round by round."""
    return statistics.median(a / b for a, b in zip(mine, others, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--timelines", type=int, default=7, help="rounds with a profile")
    parser.add_argument("--arguments", default="--layers 7", help="of workload.py")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--microbatches", type=int, default=4)
    parser.add_argument("schedules", nargs="*", default=SCHEDULES)
    own = parser.parse_args()
    shape = f"--ranks {own.ranks} --microbatches {own.microbatches} {own.arguments}"
    options = arguments(shape.split())
    simulate_cpus(own.ranks)
    found = {name: compete(name, options) for name in own.schedules}
    act: Callable[[Contestant], None]
    for act, count in ((Contestant.step, own.rounds + 1), (Contestant.observe, own.timelines)):
        for _ in range(count):
            for contestant in found.values():
                act(contestant)
    base = next(iter(found.values()))
    first: dict[int, Contestant] = {}
    print(
        f"{'schedule':16s} {'step s':>7s} {'ratio':>6s} {'makespan':>9s} {'ratio':>6s}"
        f" {'simulated':>10s} {'ratio':>6s} {'compile':>8s} {'temporaries':>12s}"
    )
    for name, one in found.items():
        alike = first.setdefault(one.engine.schedule.num_chunks, one)
        memory = one.compiled.memory_analysis().temp_size_in_bytes
        print(
            f"{name:16s} {statistics.median(one.steps[1:]):7.3f}"
            f" {ratio(one.steps[1:], base.steps[1:]):6.2f}"
            f" {statistics.median(one.makespans):9.3f} {ratio(one.makespans, base.makespans):6.2f}"
            f" {one.simulated:10.3f} {one.simulated / base.simulated:6.2f}"
            f" {one.compile / alike.compile:8.2f} {memory / 1e6:9.1f} MB"
        )


if __name__ == "__main__":
    main()
