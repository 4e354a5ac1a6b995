"""A plan as text."""

from collections.abc import Iterator, Mapping

from jaxpipe.planner.plan import Plan

_WIDTH = 40  # of a bar, in characters, for a device's whole memory
_AS_GOOD = 1.03  # a step that is so much longer than the fastest is as good
# What a letter of the bar stands for.
_PARTS = {
    "P": ("parameters", "parameters, float32"),
    "O": ("optimizer", "optimizer's state"),
    "C": ("weights", "parameters as they are computed with"),
    "G": ("gradients", "gradients"),
    "R": ("residuals", "residuals of the microbatches that are held"),
    "M": ("mail", "activations and gradients on their way"),
    "W": ("work", "work of the largest action, logits too"),
    "B": ("batch", "batch"),
}


def text_of(plan: Plan) -> str:
    """All of a plan, in lines of at most 100 characters."""
    return "\n".join([
        *_head(plan), "", *_stages(plan), "", *_memory(plan), "", *_time(plan), *_counts(plan),
        *_alternatives(plan),
    ])  # fmt: skip


def _head(plan: Plan) -> Iterator[str]:
    pipeline, chip = plan.config.pipeline, plan.devices.chip
    total = plan.memory.total
    if not plan.enough_devices:
        verdict = (
            f"DOES NOT FIT: the mesh has {pipeline.num_devices} devices, and there are"
            f" {plan.devices.number}"
        )
    elif plan.fits:
        verdict = f"fits: {_size(total)} of {_size(plan.limit)} on each device"
    else:
        verdict = f"DOES NOT FIT: {_size(total)} on each device, and there are {_size(plan.limit)}"
    yield verdict
    yield (
        f"{plan.devices.number} x {chip.kind}, {_size(chip.memory)}, of which arrays may take"
        f" {plan.assumed.usable:.0%}"
    )
    yield (
        f"{plan.parameters:,} parameters; pipe {pipeline.ranks} x data {pipeline.data} x tensor"
        f" {pipeline.tensor}, zero {pipeline.zero}, remat {pipeline.remat},"
        f" {plan.schedule.name}, {plan.schedule.num_microbatches} microbatches"
    )


def _stages(plan: Plan) -> Iterator[str]:
    """A line for each stage; where many are alike, the first, the last and those that differ."""
    partition, lines = plan.partition, str(plan.partition).splitlines()
    if partition.num_stages <= 16:
        yield from lines
        return
    yield from lines[:3]
    yield f"  ... {partition.num_stages - 3} more"
    yield from lines[-2:]


def _memory(plan: Plan) -> Iterator[str]:
    """The bar: all devices run one program, and allocate the same."""
    memory, whole = plan.memory, plan.devices.chip.memory
    parts = {letter: getattr(memory, name) for letter, (name, _) in _PARTS.items()}
    bar = _bar(parts, whole, max(0, round(_WIDTH * plan.limit / whole)))
    yield "memory of each device (all run one program, and hold as much as the one that needs most)"
    yield f"  [{bar}] {_size(memory.total)} of {_size(whole)}"
    for letter, (name, text) in _PARTS.items():
        yield f"  {letter} {_size(getattr(memory, name)):>9}  {text}"
    if memory.update > memory.total - memory.state - memory.batch - 1:
        yield f"  (after the last tick, instead of C to W: {_size(memory.update)})"


def _bar(parts: Mapping[str, int], whole: float, limit: int) -> str:
    """A letter for each share of the whole; dots for what is free, a bar where arrays must end."""
    text, done = "", 0.0
    for letter, size in parts.items():
        done += size
        text += letter * (min(_WIDTH * 2, round(_WIDTH * done / whole)) - len(text))
    text = text.ljust(_WIDTH, ".")
    return text[:limit] + "|" + text[limit:]


def _time(plan: Plan) -> Iterator[str]:
    speed, assumed = plan.speed, plan.assumed
    timeline = speed.timeline
    yield (
        f"step {speed.step:.3g} s: {plan.per_second:,.0f} {plan.config.data.unit}/s, MFU"
        f" {plan.utilization:.1%}, bubble {timeline.bubble_fraction:.1%}"
    )
    exchange = f", of it {speed.exchange:.3g} s for parts of layers" if speed.exchange else ""
    yield (
        f"  pipeline {timeline.makespan:.3g} s{exchange}; after it gradients"
        f" {speed.gradients:.3g} s, optimizer {speed.update:.3g} s"
    )
    dtype, chip = plan.config.pipeline.compute_dtype, plan.devices.chip
    yield (
        f"  assumed: {assumed.efficiency:.0%} of {chip.peak(dtype) / 1e12:,.0f} TFLOP/s;"
        f" {assumed.link_efficiency:.0%} of {chip.link / 1e9:,.0f} GB/s within a machine,"
        f" {chip.network / 1e9:,.3g} GB/s between"
    )
    yield f"  machines, and {chip.bandwidth / 1e9:,.0f} GB/s of memory; nothing overlaps"


def _counts(plan: Plan) -> Iterator[str]:
    if len(plan.counts) < 2:
        return
    fit = [one for one in plan.counts if one.fits]
    # Small microbatches keep a device less busy, which nothing here counts.
    fastest = min((one.seconds for one in fit), default=0.0)
    best = next((one for one in fit if one.seconds <= _AS_GOOD * fastest), None)
    yield ""
    yield "microbatches  memory       step"
    for one in plan.counts:
        mark = "does not fit" if not one.fits else "best" if one is best else ""
        here = "as given" if one.microbatches == plan.schedule.num_microbatches else ""
        notes = ", ".join(filter(None, (here, mark)))
        line = f"{one.microbatches:>12}  {_size(one.bytes):>9}  {one.seconds:>7.3g} s  {notes}"
        yield line.rstrip()


def _alternatives(plan: Plan) -> Iterator[str]:
    if plan.fits:
        return
    yield ""
    if not plan.alternatives:
        yield "nothing near it fits: use more devices, or devices with more memory"
        return
    yield f"nearest that fit on {plan.devices.number} x {plan.devices.chip.name}:"
    for one in plan.alternatives:
        yield f"  {one.options}"
        yield f"      {_size(one.bytes)}, step {one.seconds:.3g} s"


def _size(size: float) -> str:
    """Of memory.

    >>> _size(30.42e9), _size(2.5e6)
    ('30.4 GB', '2.5 MB')
    """
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"
