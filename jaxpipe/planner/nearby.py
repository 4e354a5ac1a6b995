"""The nearest configurations that fit, where one does not: those that change the fewest fields."""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any

from jaxpipe.config import Config, validate
from jaxpipe.errors import JaxpipeError
from jaxpipe.planner.plan import Alternative, Plan, estimate
from jaxpipe.schedules import AUTO, by_name, simulate

# What is easiest to change comes first, among as few changes.
_FIELDS = (
    "microbatches",
    "remat",
    "zero",
    "schedule",
    "sequence_parallel",
    "ranks",
    "data",
    "tensor",
)
_REMAT = ("none", 1, "full")
_SCHEDULES = ("1f1b", "zb-h1", "interleaved", "v-half", "v-min")
_MOST_TRIED = 12  # that are traced
_DOUBT = 1.1  # by which a guess may be wrong


def nearby(plan: Plan, wanted: int) -> Iterator[Alternative]:
    """Configurations on as many devices that fit, nearest first.

    Each is traced before it is told, but those that are among the plan's `counts`.

    What is traced is guessed first: state by its share of a device, all that belongs to
    microbatches by how many there are, how large, and how much of a layer is on a device.
    """
    found = tried = 0
    known = {one.microbatches: one for one in plan.counts}
    for changes in sorted(_changes(plan), key=lambda c: _distance(plan.config, c)):
        if found == wanted or tried == _MOST_TRIED:
            return
        if not _may_fit(plan, changes):
            continue
        if [*changes] == ["microbatches"] and changes["microbatches"] in known:
            count = known[changes["microbatches"]]
            if count.fits and plan.enough_devices:
                found += 1
                yield Alternative(_whole_names(changes), count.bytes, count.seconds)
            continue
        config = changed(plan.config, changes)
        try:
            validate(config)
            tried += 1
            other = estimate(config, plan.devices, plan.assumed)
        except JaxpipeError:
            continue
        if other.fits:
            found += 1
            yield Alternative(_whole_names(changes), other.memory.total, other.speed.step)


def changed(config: Config, changes: dict[str, Any]) -> Config:
    """A configuration with other fields of its pipeline."""
    return dataclasses.replace(config, pipeline=dataclasses.replace(config.pipeline, **changes))


def _whole_names(changes: dict[str, Any]) -> dict[str, Any]:
    return {f"pipeline.{name}": value for name, value in changes.items()}


def _changes(plan: Plan) -> Iterator[dict[str, Any]]:
    """What may be changed, and to what; of the mesh all three sizes together."""
    pipeline, rows = plan.config.pipeline, plan.config.trainer.batch_size
    meshes = set(_meshes(plan))
    counts = {2**n for n in range(int(math.log2(rows)) + 1)} | {pipeline.microbatches}
    schedules = {pipeline.schedule, *_SCHEDULES}
    for (ranks, data, tensor), zero, remat, count, schedule in itertools.product(
        meshes, range(4), {*_REMAT, pipeline.remat}, counts, schedules
    ):
        if rows % (data * count) or (zero and data == 1 and zero != pipeline.zero):
            continue
        cut = (
            {tensor > 1} if tensor != pipeline.tensor else {pipeline.sequence_parallel, tensor > 1}
        )
        for sequence_parallel in cut:
            values = dict(
                ranks=ranks, data=data, tensor=tensor, zero=zero, remat=remat, microbatches=count,
                schedule=schedule, sequence_parallel=sequence_parallel,
            )  # fmt: skip
            new = {
                name: value for name, value in values.items() if value != getattr(pipeline, name)
            }
            if new:
                yield new


def _meshes(plan: Plan) -> Iterator[tuple[int, int, int]]:
    """Sizes that make up all devices, layers shared within a machine."""
    count, layers = plan.devices.number, plan.config.model.num_layers
    if plan.enough_devices:
        pipeline = plan.config.pipeline
        yield pipeline.ranks, pipeline.data, pipeline.tensor
    for ranks in range(1, min(count, layers) + 1):
        for tensor in (1, 2, 4, 8):
            if count % (ranks * tensor) == 0:
                yield ranks, count // (ranks * tensor), tensor


def _distance(config: Config, changes: dict[str, Any]) -> tuple[Any, ...]:
    """Few fields first; then those that are easy to change, and by little."""
    far = sum(
        abs(math.log2(value / getattr(config.pipeline, name)))
        for name, value in changes.items()
        if name in ("microbatches", "ranks", "data", "tensor")
    )
    order = sorted(_FIELDS.index(name) for name in changes)
    return len(changes), order, far, sorted((name, str(value)) for name, value in changes.items())


def _may_fit(plan: Plan, changes: dict[str, Any]) -> bool:
    """Whether a guess of its memory says so."""
    before, after = plan.config.pipeline, changed(plan.config, changes).pipeline
    if after.num_devices > plan.devices.number or after.schedule == AUTO:
        return False
    share = plan.parameters / (after.ranks * after.tensor)
    half = 0 if after.compute_dtype == "float32" else 2
    state = share * (
        4 / (after.data if after.zero == 3 else 1) + 8 / (after.data if after.zero else 1)
    )
    limit = plan.limit * _DOUBT
    if state + share * (4 + half) > limit:
        return False
    size = lambda p: plan.config.trainer.batch_size / (p.data * p.microbatches) / p.tensor
    try:
        table = by_name(after.schedule, after.ranks, after.microbatches, num_chunks=after.chunks)
    except JaxpipeError:
        return False
    # Of a microbatch: what each layer keeps in all, and its share that recomputation leaves.
    kept = {"none": 1.0, "full": 1 / 40}
    part = lambda p: kept.get(p.remat, 1 / 12) if isinstance(p.remat, str) else 1 / 12
    old = max(simulate(plan.schedule).held) / plan.schedule.num_stages
    new = max(simulate(table).held) / table.num_stages
    ratio = (size(after) * new * part(after)) / (size(before) * old * part(before))
    work = plan.memory.work * size(after) / size(before)
    if part(after) < part(before):
        work *= 0.5  # what is guessed low is traced
    guess = state + share * (4 + half) + plan.memory.residuals * ratio / 2 + work / 2
    return guess <= limit
