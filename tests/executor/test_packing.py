"""Packing: what is written into a slot is read out of it, and nothing else is touched."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpipe.executor.packing import Packing

F32, BF16, I32, BOOL = (jnp.dtype(d) for d in ("float32", "bfloat16", "int32", "bool"))
Variant = list[tuple[tuple[int, ...], Any]]

VARIANTS: dict[str, list[Variant]] = dict(
    alike=[[((2, 3), F32), ((4,), I32)], [((2, 3), F32), ((4,), I32)]],
    beginnings=[[((2, 3), F32), ((4,), I32), ((), BOOL)], [((2, 3), F32)], []],
    unlike=[[((2, 3), F32)], [((7,), F32)], [((1, 1, 1), F32), ((2,), F32)]],
    unlike_dtypes=[
        [((2, 3), F32), ((4,), I32), ((3,), BOOL)],
        [((5,), BF16), ((2, 2), BOOL), ((), I32), ((2,), BF16)],
        [((), F32), ((9,), F32)],
    ],
)
cases = pytest.mark.parametrize("name", VARIANTS)


def specs(variant: Variant) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in variant]


def values(variant: Variant, seed: int) -> list[jax.Array]:
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.integers(0, 2, shape) * 3, dtype) for shape, dtype in variant]


def equal(got: Any, want: Any) -> None:
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_array_equal(a, b)


def shapes_of(packing: Packing) -> set[tuple[str, tuple[int, ...]]]:
    return {(str(b.dtype), b.shape) for b in packing.buffers.values()}


def test_what_lists_have_in_common_keeps_its_shape_and_the_rest_is_laid_end_to_end():
    packings = {name: Packing.of([specs(v) for v in lists]) for name, lists in VARIANTS.items()}
    alike = {("float32", (2, 3)), ("int32", (4,))}
    assert shapes_of(packings["alike"]) == alike
    assert shapes_of(packings["beginnings"]) == alike | {("bool", ())}
    assert shapes_of(packings["unlike"]) == {("float32", (7,))}
    unlike = packings["unlike_dtypes"]
    assert unlike.bytes == 7 * 2 + 4 + 10 * 4 + 4 * 4
    common = Packing.of([specs([((8, 8), F32), ((3,), F32)]), specs([((64,), F32), ((2,), F32)])])
    assert shapes_of(common) == {("float32", (64,)), ("float32", (3,))}


def test_nothing_to_pack_takes_nothing():
    empty = Packing.of([])
    assert empty.bytes == 0 and empty.empty(3, None) == [] and empty.write([], []) == []


@cases
def test_each_slot_holds_what_was_put_there(name: str):
    lists = VARIANTS[name]
    packing = Packing.of([specs(v) for v in lists])
    buffers = packing.empty(len(lists), float("nan"))
    for slot, variant in enumerate(lists):
        buffers = packing.write(buffers, values(variant, slot), jnp.uint32(slot))
    for slot, variant in enumerate(lists):
        equal(packing.read(buffers, specs(variant), jnp.uint32(slot)), values(variant, slot))


@cases
def test_without_a_slot_a_payload_holds_one_list(name: str):
    lists = VARIANTS[name]
    packing = Packing.of([specs(v) for v in lists])
    buffers = packing.empty(None, float("nan"))
    want = [(spec.shape, spec.dtype) for spec in packing.buffers.values()]
    assert [(b.shape, b.dtype) for b in buffers] == want
    for seed, variant in enumerate(lists):
        buffers = packing.write(buffers, values(variant, seed))
        equal(packing.read(buffers, specs(variant)), values(variant, seed))


@cases
def test_what_is_not_written_stays_as_it_was(name: str):
    packing = Packing.of([specs(v) for v in VARIANTS[name]])
    shortest = min(VARIANTS[name], key=len)
    before = packing.empty(3, float("nan"))
    for buffer in before:
        is_float = jnp.issubdtype(buffer.dtype, jnp.floating)
        assert np.isnan(buffer).all() if is_float else not np.any(buffer)
    after = packing.write(before, values(shortest, 0), jnp.uint32(1))
    wide = lambda buffers: [
        np.asarray(b, np.float64) for b in buffers
    ]  # NumPy's bfloat16 NaNs differ
    key = tuple(shortest)
    homes, names = list(zip(packing.homes[key], shortest, strict=True)), list(packing.buffers)
    for i, (old, new) in enumerate(zip(wide(before), wide(after), strict=True)):
        np.testing.assert_array_equal(new[0], old[0])
        np.testing.assert_array_equal(new[2], old[2])
        written = [(h.offset, math.prod(s)) for h, (s, _) in homes if h.buffer == names[i]]
        kept = np.ones(old[1].size, bool)
        for offset, size in written:
            kept[offset : offset + size] = False
        np.testing.assert_array_equal(new[1].ravel()[kept], old[1].ravel()[kept])


def test_unwritten_memory_has_the_right_shape():
    packing = Packing.of([specs(VARIANTS["alike"][0])])
    assert {b.shape for b in packing.empty(2, None)} == {(2, 2, 3), (2, 4)}


shapes = st.sampled_from([(), (1,), (3,), (2, 2)])
variants = st.lists(
    st.lists(st.tuples(shapes, st.sampled_from([F32, BF16, I32, BOOL])), max_size=4), max_size=3
)


@settings(deadline=None, max_examples=50)  # JAX compiles each shape once
@given(variants)
def test_any_lists_can_take_turns(lists: list[Variant]):
    packing = Packing.of([specs(v) for v in lists])
    buffers = packing.empty(1, float("nan"))
    for seed, variant in enumerate(lists):
        buffers = packing.write(buffers, values(variant, seed), jnp.uint32(0))
        equal(packing.read(buffers, specs(variant), jnp.uint32(0)), values(variant, seed))
    largest = max((sum(int(np.prod(s)) * d.itemsize for s, d in v) for v in lists), default=0)
    assert packing.bytes >= largest
