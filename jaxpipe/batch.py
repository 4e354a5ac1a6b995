"""A batch: a dict of arrays with the global batch first; its checks and its microbatches."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from jaxpipe.errors import BatchError
from jaxpipe.spec import describe, is_traced

PyTree = Any
IGNORED = -100  # a target that does not count, as PyTorch and transformers have it
Batch = Mapping[str, PyTree]


def check_fields(batch: Batch, readers: Mapping[str, Iterable[str]]) -> None:
    """Raises `BatchError` unless the batch has `inputs` and what each reader asks for."""
    if not isinstance(batch, Mapping):
        raise BatchError(
            f"a batch is a dict of arrays, {{'inputs': ..., ...}}; got {type(batch).__name__}."
        )
    have = ", ".join(repr(field) for field in batch)
    if "inputs" not in batch:
        raise BatchError(
            f"the batch has no field 'inputs', which the first layer gets; it has {have}."
        )
    for reader, fields in readers.items():
        for field in fields:
            if field not in batch:
                raise BatchError(
                    f"layer {reader} reads batch field {field!r}; the batch has {have}. Add the"
                    " field, or take it out of the layer's batch_inputs."
                )


def batch_size(batch: Batch) -> int:
    """The common leading size of all fields.

    Raises:
      BatchError: when a field has no leading dim, or the sizes differ.
    """
    sizes = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(dict(batch)):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not np.shape(leaf):
            raise BatchError(f"batch field {name!r} is a scalar; every field has the batch first.")
        sizes[name] = np.shape(leaf)[0]
    if len(set(sizes.values())) != 1:
        listed = ", ".join(f"{name}: {size}" for name, size in sizes.items())
        raise BatchError(f"batch fields differ in their leading size: {listed}. Make them equal.")
    return next(iter(sizes.values()))


def check_divisible(size: int, num_microbatches: int, num_data: int) -> None:
    """Raises `BatchError` unless `size` can be cut into microbatches x data, naming what could."""
    pieces = num_microbatches * num_data
    if size % pieces or not size:
        below, above = size // pieces * pieces, (size // pieces + 1) * pieces
        nearest = f"{below} or {above}" if below else f"{above}"
        raise BatchError(
            f"a batch of {size} cannot be cut into {num_microbatches} microbatches x {num_data}"
            f" data ranks; the nearest sizes that can are {nearest}."
        )


def check_ids(batch: Batch, ranges: Mapping[str, tuple[int, int]]) -> None:
    """Raises `BatchError` for ids outside their range: JAX would clamp them in silence.

    So it does for what are no integers. A target may be `IGNORED`. Fields on an accelerator, or
    spread over processes, are not fetched and so not checked.
    """
    for field, (low, high) in ranges.items():
        if field not in batch:
            continue
        ids = batch[field]
        if isinstance(ids, jax.Array):
            if is_traced(ids) or not ids.is_fully_addressable:
                continue
            if any(device.platform != "cpu" for device in ids.devices()):
                continue
        ids = np.asarray(ids)
        if not np.issubdtype(ids.dtype, np.integer):
            raise BatchError(
                f"batch field {field!r} holds {ids.dtype}, expected the integers of ids:"
                f" {low} <= id < {high}."
            )
        wrong = (ids < low) | (ids >= high)
        if field == "targets":
            wrong &= ids != IGNORED
        if wrong.any():
            place = tuple(int(i) for i in np.argwhere(wrong)[0])
            raise BatchError(
                f"batch field {field!r} holds {ids[place]} at {place}, outside {low} <= id < {high}"
                f" ({int(wrong.sum())} such of {ids.size}). Fix the data or the vocabulary size;"
                " check_ids=False switches this check off."
            )


def split_microbatches(batch: Batch, num_microbatches: int) -> dict[str, PyTree]:
    """Every array `[batch, ...]` as `[num_microbatches, batch / num_microbatches, ...]`."""
    check_divisible(batch_size(batch), num_microbatches, 1)
    cut = lambda x: x.reshape(num_microbatches, x.shape[0] // num_microbatches, *x.shape[1:])
    return jax.tree.map(cut, dict(batch))


def microbatch_spec(batch: Batch, num_microbatches: int, num_data: int) -> dict[str, PyTree]:
    """Abstract arrays of one microbatch of one data rank.

    Raises:
      BatchError: when the fields' sizes differ or cannot be cut so.
    """
    size = batch_size(batch)
    check_divisible(size, num_microbatches, num_data)
    rows = size // (num_microbatches * num_data)
    spec = lambda x: jax.ShapeDtypeStruct(
        (rows, *x.shape[1:]), jax.dtypes.canonicalize_dtype(x.dtype)
    )
    return jax.tree.map(spec, dict(batch))


def describe_batch(batch: Batch) -> str:
    """The batch's fields, shapes and dtypes in one line."""
    return describe(dict(batch))
