"""A few steps of a configuration under JAX's profiler: a trace to open, and what takes the time."""

import dataclasses
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.profiler import ProfileData

from jaxpipe.config import Config
from jaxpipe.executor.run import BRANCH_SCOPE
from jaxpipe.measurement import warmed_up
from jaxpipe.sections import Sections

_OPERATION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = .*? ([\w\-]+)\(.*op_name=\"([^\"]*)\"")
_BRANCH = re.compile(BRANCH_SCOPE.format(r"(\d+)"))
_HOLLOW = ("while", "call", "conditional")  # whose time is that of what they run
_COLLECTIVES = ("collective-permute", "all-reduce", "all-gather", "reduce-scatter", "all-to-all")


@dataclasses.dataclass(frozen=True)
class Profile:
    """What some steps took.

    Attributes:
      folder: where the traces are.
      steps: how many.
      seconds: {what: seconds of a step, over all devices}, the most first.
      operations: the longest operations: (what, name, seconds of a step).
      memory: XLA's own count of the step's bytes, by kind.
    """

    folder: Path
    steps: int
    seconds: Mapping[str, float]
    operations: tuple[tuple[str, str, float], ...]
    memory: Mapping[str, int]

    def __str__(self) -> str:
        total = sum(self.seconds.values()) or 1.0
        lines = [f"time of a step on all devices together, of {self.steps} steps"]
        for what, seconds in self.seconds.items():
            lines.append(f"  {seconds * 1e3:9.2f} ms {seconds / total:6.1%}  {what}")
        lines.append("longest operations")
        for what, name, seconds in self.operations:
            lines.append(f"  {seconds * 1e3:9.2f} ms {seconds / total:6.1%}  {name}  in {what}")
        lines.append("bytes on each device, by XLA")
        lines += [f"  {size / 1e6:9.1f} MB  {kind}" for kind, size in self.memory.items()]
        return "\n".join(lines)


def profile_steps(
    config: Config,
    num_steps: int,
    folder: Path,
    *,
    longest: int = 10,
    say: Callable[[str], None] = lambda text: None,
    sections: Sections | None = None,
) -> Profile:
    """Runs a step to warm up, then `num_steps` under the profiler; nothing else is kept.

    Args:
      config: what to train; validated here.
      num_steps: how many steps to look at.
      folder: for the traces, as XProf and TensorBoard read them (`*.xplane.pb`), and as Perfetto
        does (`*.trace.json.gz`).
      longest: how many operations to name.
      say: told how far the tokens are, if they are to be made.
      sections: entered for what is done, for signs of life.

    Raises:
      JaxpipeError: the configuration, the data or the devices cannot be used.
    """
    sections = Sections() if sections is None else sections
    engine, state, batch = warmed_up(config, say=say, sections=sections)
    with sections.enter("compile", 1):
        compiled, program = engine.compiled(state, batch), engine.program(batch)
        branches = [f"{op} of stage code {code}" for op, code in program.branches]
        scopes = scopes_of(compiled.as_text(), branches)
        jax.block_until_ready(state)
    with sections.enter("step"), jax.profiler.trace(str(folder)):
        for number in range(num_steps):
            with jax.profiler.StepTraceAnnotation("train", step_num=number):
                state, _ = engine.train_batch(state, batch)
        jax.block_until_ready(state)
    taken = _taken(folder, scopes)
    by_scope: dict[str, float] = {}
    for name, seconds in taken.items():
        by_scope[scopes[name]] = by_scope.get(scopes[name], 0.0) + seconds / num_steps
    order = sorted(taken, key=lambda name: -taken[name])[:longest]
    return Profile(
        folder, num_steps,
        dict(sorted(by_scope.items(), key=lambda pair: -pair[1])),
        tuple((scopes[name], name, taken[name] / num_steps) for name in order),
        _memory(compiled),
    )  # fmt: skip


def scopes_of(text: str, branches: list[str]) -> dict[str, str]:
    """What each operation of an optimised program belongs to, by the operation's name.

    Args:
      text: `compiled.as_text()`.
      branches: what the program's branches are called, in their order.
    """
    found = {}
    for name, op, path in (m.groups() for m in map(_OPERATION.match, text.splitlines()) if m):
        if op in _HOLLOW:
            continue
        branch = _BRANCH.search(path)
        if branch:
            found[name] = branches[int(branch[1]) - 1]
        elif any(op.startswith(kind) for kind in _COLLECTIVES):
            found[name] = f"between devices: {op.removesuffix('-start').removesuffix('-done')}"
        else:
            found[name] = "optimizer, and what is around the loop"
    return found


def _taken(folder: Path, scopes: Mapping[str, str]) -> dict[str, float]:
    """Seconds of each operation, over all devices and steps."""
    taken: dict[str, float] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the reader's types have no module
        for path in folder.rglob("*.xplane.pb"):
            for plane in ProfileData.from_file(str(path)).planes:
                for event in (event for line in plane.lines for event in line.events):
                    if event.name in scopes:
                        taken[event.name] = taken.get(event.name, 0.0) + event.duration_ns / 1e9
    return taken


def _memory(compiled: Any) -> dict[str, int]:
    found = compiled.memory_analysis()
    return {
        "arguments: the state and the batch": found.argument_size_in_bytes,
        "temporaries": found.temp_size_in_bytes,
        "results, of which the state takes the place of the old one": found.output_size_in_bytes,
        "the program itself": found.generated_code_size_in_bytes,
    }
