"""Cuts a list of layers into stages: integers in, integers out.

A stage is a run of consecutive layers, and the slowest stage sets the pace of the pipeline. So the
cuts make the largest stage as small as it can be. Among the cuts that do, they are those that send
the fewest bytes from stage to stage; then the most even ones, by weight and then by number of
layers; then the earliest. The answer is exact, and the same on every machine.
"""

import itertools
import operator
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from jaxpipe.errors import PartitionError, nearest

METHODS = ("uniform", "parameters", "flops", "type:REGEX")


@dataclass(frozen=True)
class LayerCost:
    """What one layer costs.

    Attributes:
      name: the layer's name in the logical tree, `"block_3"`.
      type_name: the name of its class or function, `"Block"`; what `"type:REGEX"` looks at.
      parameters: how many numbers it learns.
      flops: floating point operations of one forward pass over one microbatch.
      output_bytes: bytes that it passes to the next layer, for one microbatch.
    """

    name: str
    type_name: str
    parameters: int
    flops: int
    output_bytes: int


@dataclass(frozen=True)
class Partition:
    """Which layers make up which stage. `print(partition)` shows the shares as a table.

    Attributes:
      boundaries: `num_stages + 1` positions; stage `i` has layers `boundaries[i]` to
        `boundaries[i + 1] - 1`.
      layers: the layers that were cut, first to last.
      method: how the boundaries were found, as given to `partition`; `"explicit"` for a list.
    """

    boundaries: tuple[int, ...]
    layers: tuple[LayerCost, ...]
    method: str

    @property
    def num_stages(self) -> int:
        """How many stages there are."""
        return len(self.boundaries) - 1

    def stage(self, index: int) -> range:
        """The layers of stage `index`."""
        if not 0 <= index < self.num_stages:
            raise PartitionError(
                f"There is no stage {index}: stages are 0 to {self.num_stages - 1}."
            )
        return range(self.boundaries[index], self.boundaries[index + 1])

    def stage_of(self, layer: int) -> int:
        """The stage that layer number `layer` belongs to."""
        if not 0 <= layer < len(self.layers):
            raise PartitionError(
                f"There is no layer {layer}: layers are 0 to {len(self.layers) - 1}."
            )
        return bisect_right(self.boundaries, layer) - 1

    def __str__(self) -> str:
        return _table(self)


def partition(
    layers: Sequence[LayerCost], num_stages: int, method: str | Sequence[int]
) -> Partition:
    """Cuts `layers` into `num_stages` stages of one layer or more each.

    Args:
      layers: what each layer costs, first to last.
      num_stages: the number of stages in all.
      method: what to balance. `"uniform"`: the number of layers; `"parameters"`; `"flops"`;
        `"type:REGEX"`: the number of layers whose type matches, wherever in its name and whatever
        the case; or the boundaries themselves, `[0, 4, 7, 10]` for three stages of ten layers.

    Raises:
      PartitionError: fewer layers than stages, an unknown method, an expression that matches no
        layer, or boundaries that do not cover the layers.

    >>> sizes = [5, 1, 1, 3]
    >>> layers = [LayerCost(f"dense_{i}", "Dense", n, 2 * n, 64) for i, n in enumerate(sizes)]
    >>> partition(layers, 2, "parameters").boundaries
    (0, 1, 4)
    >>> print(partition(layers, 2, "uniform"))
    stage  layers                    parameters  share  FLOPs  share  sends
        0  0-1  Dense x2                      6  60.0%     12  60.0%   64 B
        1  2-3  Dense x2                      4  40.0%      8  40.0%
    total  4 layers, largest / mean          10  1.20x     20  1.20x   64 B
    """
    if num_stages < 1:
        raise PartitionError(f"Got num_stages={num_stages}: there must be at least 1 stage.")
    if len(layers) < num_stages:
        raise PartitionError(
            f"Got {len(layers)} layers for {num_stages} stages, and each stage needs at least one: "
            f"ask for at most {len(layers)} stages, or cut the model into more layers."
        )
    if isinstance(method, str):
        boundaries = _balance(_weights(layers, method), _cut_bytes(layers), num_stages)
    else:
        boundaries = _checked(method, len(layers), num_stages)
        method = "explicit"
    return Partition(boundaries, tuple(layers), method)


def _weights(layers: Sequence[LayerCost], method: str) -> list[int]:
    """What `method` balances, layer by layer."""
    kind, colon, expression = method.partition(":")
    if kind == "type" and colon:
        weights = _matches(layers, expression)
    elif method == "parameters":
        weights = [layer.parameters for layer in layers]
    elif method == "flops":
        weights = [layer.flops for layer in layers]
    elif method == "uniform":
        weights = [1] * len(layers)
    else:
        hint = nearest(method, METHODS)
        raise PartitionError(
            f"Unknown partition method {method!r}; {hint} A list of boundaries works, too."
        )
    # Where nothing weighs anything, an even number of layers is all that is left to balance.
    return weights if any(weights) else [1] * len(layers)


def _matches(layers: Sequence[LayerCost], expression: str) -> list[int]:
    """1 for each layer whose type matches `expression`, else 0."""
    try:
        pattern = re.compile(expression, re.IGNORECASE)
    except re.error as error:
        raise PartitionError(
            f"Got method 'type:{expression}', and {expression!r} is no regular expression: {error}."
        ) from error
    matches = [int(pattern.search(layer.type_name) is not None) for layer in layers]
    if not any(matches):
        types = ", ".join(sorted({layer.type_name for layer in layers}))
        raise PartitionError(
            f"Got method 'type:{expression}', which matches none of the {len(layers)} layers: "
            f"use an expression that matches at least one of their types, {types}."
        )
    return matches


def _checked(boundaries: Sequence[int], num_layers: int, num_stages: int) -> tuple[int, ...]:
    """Boundaries from the caller, as they are, or a PartitionError that says what is wrong."""

    def refuse(problem: str) -> PartitionError:
        return PartitionError(
            f"Got boundaries {list(boundaries)}: {problem}. To cut {num_layers} layers into "
            f"{num_stages} stages, give {num_stages + 1} increasing integers: 0 to {num_layers}."
        )

    try:
        cuts = tuple(operator.index(cut) for cut in boundaries)
    except TypeError as error:
        raise refuse("not all of them are integers") from error
    if len(cuts) != num_stages + 1:
        raise refuse(f"{len(cuts)} of them, expected {num_stages + 1}")
    if cuts[0] != 0:
        raise refuse(f"the first is {cuts[0]}, expected 0")
    if cuts[-1] != num_layers:
        raise refuse(f"the last is {cuts[-1]}, expected the number of layers, {num_layers}")
    for stage, (start, stop) in enumerate(itertools.pairwise(cuts)):
        if stop <= start:
            raise refuse(f"stage {stage} would be {start} to {stop}, which holds no layer")
    return cuts


def _cut_bytes(layers: Sequence[LayerCost]) -> list[int]:
    """Bytes that pass at each boundary: `[j]` for a cut before layer `j`; none at the ends."""
    return [0, *(layer.output_bytes for layer in layers[:-1]), 0]


def _balance(weights: Sequence[int], cut_bytes: Sequence[int], num_stages: int) -> tuple[int, ...]:
    """The best boundaries, by the order of preference that the module's docstring gives.

    Backward through the stages: `best[i]` is the least cost of layers `i` to the end, for each `i`
    where the stage may begin. A stage from `i` to `j` adds the bytes at `j`, its weight squared and
    its number of layers squared, as the digits of one integer: the first outweighs all the rest.
    """
    prefix = list(itertools.accumulate(weights, initial=0))
    limit = _smallest_limit(prefix, max(weights), num_stages)
    reach = [bisect_right(prefix, start + limit) - 1 for start in prefix]
    end = len(weights)
    all_weights, all_counts = prefix[end] ** 2 + 1, end**2 + 1

    def cost(i: int, j: int) -> int:
        by_weight = cut_bytes[j] * all_weights + (prefix[j] - prefix[i]) ** 2
        return by_weight * all_counts + (j - i) ** 2

    best = {end: 0}
    choices: list[dict[int, int]] = []
    for window in reversed(_windows(prefix, reach, limit, num_stages)):
        choices.append(_leftmost(cost, best, reach, window))
        best = {i: cost(i, j) + best[j] for i, j in choices[-1].items()}
    boundaries = [0]
    for choice in reversed(choices):
        boundaries.append(choice[boundaries[-1]])
    return tuple(boundaries)


def _smallest_limit(prefix: Sequence[int], largest: int, num_stages: int) -> int:
    """The smallest weight that the heaviest stage can have."""

    def fits(limit: int) -> bool:
        position = 0
        for _ in range(num_stages):
            position = bisect_right(prefix, prefix[position] + limit) - 1
        return position == len(prefix) - 1

    low, high = largest, prefix[-1]
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    return low


def _windows(
    prefix: Sequence[int], reach: Sequence[int], limit: int, num_stages: int
) -> list[range]:
    """Where each stage may begin, if none may weigh more than `limit`."""
    end = len(prefix) - 1
    latest = [0]
    for stage in range(1, num_stages):
        latest.append(min(reach[latest[-1]], end - (num_stages - stage)))
    earliest = [end]
    for stage in reversed(range(num_stages)):
        earliest.append(max(bisect_left(prefix, prefix[earliest[-1]] - limit), stage))
    starts = zip(earliest[:0:-1], latest, strict=True)
    return [range(first, last + 1) for first, last in starts]


def _leftmost(
    cost: Callable[[int, int], int], best: Mapping[int, int], reach: Sequence[int], starts: range
) -> dict[int, int]:
    """For each `i` of `starts`, the leftmost `j` with the least `cost(i, j) + best[j]`.

    As `i` moves right, this `j` never moves left: the squares obey the quadrangle inequality, and
    neither a term in `j` alone nor `reach` changes that. So the `j` of the middle `i` bounds the
    `j` on both sides, and all of them take `n log n` steps.
    """
    choice: dict[int, int] = {}

    def search(starts: range, low: int, high: int) -> None:
        if not starts:
            return
        half = len(starts) // 2
        i = starts[half]
        ends = range(max(low, i + 1), min(high, reach[i]) + 1)
        choice[i] = min(ends, key=lambda j: cost(i, j) + best[j])
        search(starts[:half], low, choice[i])
        search(starts[half + 1 :], choice[i], high)

    search(starts, min(best), max(best))
    return choice


def _table(cut: Partition) -> str:
    """The stages as rows, their shares, and a last row of totals."""
    stages = [[cut.layers[i] for i in cut.stage(s)] for s in range(cut.num_stages)]
    parameters = [sum(layer.parameters for layer in stage) for stage in stages]
    flops = [sum(layer.flops for layer in stage) for stage in stages]
    sends = [stage[-1].output_bytes for stage in stages[:-1]]
    columns = [
        ["stage", *map(str, range(cut.num_stages)), "total"],
        _layers_column(cut, stages),
        ["parameters", *(f"{n:,}" for n in parameters), f"{sum(parameters):,}"],
        ["share", *_shares(parameters)],
        ["FLOPs", *(_short(n, 1000, _DECIMAL) for n in flops), _short(sum(flops), 1000, _DECIMAL)],
        ["share", *_shares(flops)],
        [
            "sends",
            *(_short(n, 1024, _BINARY) for n in sends),
            "",
            _short(sum(sends), 1024, _BINARY),
        ],
    ]
    widths = [max(map(len, column)) for column in columns]
    rows = [
        "  ".join(
            cell.ljust(width) if place == 1 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in zip(*columns, strict=True)
    ]
    return "\n".join(rows)


def _layers_column(cut: Partition, stages: Sequence[Sequence[LayerCost]]) -> list[str]:
    """`0-3  Embed, Block x3`: the numbers of each stage's layers and their types."""
    spans = [cut.stage(s) for s in range(cut.num_stages)]
    numbers = [f"{s[0]}-{s[-1]}" if len(s) > 1 else f"{s[0]}" for s in spans]
    width = max(map(len, numbers))
    rows = [f"{n:{width}}  {_types(stage)}" for n, stage in zip(numbers, stages, strict=True)]
    return ["layers", *rows, f"{len(cut.layers)} layers, largest / mean"]


def _types(layers: Sequence[LayerCost]) -> str:
    """`Embed, Block x3`; what does not fit is left out of the middle."""
    runs = []
    for name, run in itertools.groupby(layers, lambda layer: layer.type_name):
        count = len(list(run))
        runs.append(f"{name} x{count}" if count > 1 else name)
    return ", ".join(runs if len(runs) <= 5 else [*runs[:3], "...", runs[-1]])


def _shares(amounts: Sequence[int]) -> list[str]:
    """Each stage's part of the whole, and the largest over the mean."""
    total = sum(amounts)
    if total == 0:
        return ["-"] * (len(amounts) + 1)
    return [
        *(f"{amount / total:.1%}" for amount in amounts),
        f"{max(amounts) * len(amounts) / total:.2f}x",
    ]


_DECIMAL = ("", " K", " M", " G", " T", " P", " E")
_BINARY = (" B", " KiB", " MiB", " GiB", " TiB", " PiB", " EiB")


def _short(amount: int, base: int, units: Sequence[str]) -> str:
    """Three digits and a unit: `1.21 G`, `256 KiB`."""
    if amount < 1000:
        return f"{amount}{units[0]}"
    value, unit = float(amount), 0
    while value >= 999.5 and unit < len(units) - 1:
        value, unit = value / base, unit + 1
    return f"{value:#.3g}".rstrip(".") + units[unit]
