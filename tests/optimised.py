"""Reads optimised programs, as XLA prints them for CPU and GPU."""

import functools
import re
from collections.abc import Sequence
from typing import NamedTuple


class Instruction(NamedTuple):
    name: str
    shapes: list[tuple[int, ...]]
    op: str
    text: str


class Optimised:
    """The computations of a program, each a list of instructions."""

    def __init__(self, text: str):
        self.computations: dict[str, list[Instruction]] = {}
        current: list[Instruction] = []
        for line in text.splitlines():
            if header := re.match(r"(?:ENTRY )?%([\w.\-]+) \(.*\{$", line):
                current = self.computations.setdefault(header[1], [])
            elif found := re.match(
                r"\s+(?:ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\(", line
            ):
                dims = [shape for _, shape in re.findall(r"(\w+)\[([\d,]*)\]", found[2])]
                shapes = [tuple(int(d) for d in shape.split(",") if d) for shape in dims]
                current.append(Instruction(found[1], shapes, found[3], line))

    def called(self, instruction: Instruction) -> set[str]:
        return set(re.findall(r"%([\w.\-]+)", instruction.text)) & self.computations.keys()

    def within(self, name: str) -> list[Instruction]:
        """All that a computation runs, and what it calls runs."""
        seen, todo, found = set(), [name], []
        while todo:
            if (here := todo.pop()) not in seen:
                seen.add(here)
                found += self.computations[here]
                todo += [c for each in self.computations[here] for c in self.called(each)]
        return found

    @functools.cached_property
    def tick(self) -> str:
        """The body of the loop over ticks: the outermost one with meetings of ranks in it."""
        bodies = {
            body: self.within(body)
            for each in self.everything
            if each.op == "while"
            for body in re.findall(r"body=%([\w.\-]+)", each.text)
        }
        meets = lambda each: each.op == "conditional" or each.op.startswith("collective-permute")
        meeting = {name: len(body) for name, body in bodies.items() if any(map(meets, body))}
        return max(meeting, key=lambda name: meeting[name])

    @functools.cached_property
    def loop(self) -> list[Instruction]:
        """All that a tick runs."""
        return self.within(self.tick)

    @property
    def copied(self) -> list[Instruction]:
        """What a tick copies, in kernels of their own or within others."""
        return [each for each in self.loop if each.op.startswith("copy")]

    @property
    def everything(self) -> list[Instruction]:
        return [each for body in self.computations.values() for each in body]


def overlapping(instructions: Sequence[Instruction], op: str) -> dict[str, list[Instruction]]:
    """For each asynchronous permute by name: the instructions of this op while it is on its way.

    The instructions of a scheduled program are in the order in which they run.
    """
    found = {}
    for at, each in enumerate(instructions):
        if each.op == "collective-permute-start":
            use = re.compile(rf"collective-permute-done\(%{re.escape(each.name)}\)")
            end = next(i for i, other in enumerate(instructions) if use.search(other.text))
            found[each.name] = [other for other in instructions[at:end] if other.op == op]
    return found
