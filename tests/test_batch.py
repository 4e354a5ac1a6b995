"""Batches: their checks, and how they are cut."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pretended import a_config, trained

import jaxpipe as jp
from jaxpipe.batch import (
    batch_size,
    check_divisible,
    check_fields,
    check_ids,
    describe_batch,
    microbatch_spec,
    split_microbatches,
)
from jaxpipe.build import build_engine
from jaxpipe.config import ModelConfig, PipelineConfig
from jaxpipe.data import Batches
from jaxpipe.errors import BatchError, LayerError
from jaxpipe.models import GPTConfig, LlamaConfig, ViTConfig, gpt, llama, vit

counts = st.integers(1, 40)


@given(st.integers(0, 500), counts, st.integers(1, 8))
def test_what_cannot_be_cut_is_refused_with_the_nearest_sizes(size: int, m: int, data: int):
    if size and size % (m * data) == 0:
        check_divisible(size, m, data)
        return
    with pytest.raises(BatchError, match=f"a batch of {size} .* {m} microbatches x {data}") as got:
        check_divisible(size, m, data)
    offered = [int(n) for n in re.findall(r"\d+", str(got.value).split("nearest")[1])]
    cuttable = [n for n in range(1, size + m * data + 1) if n % (m * data) == 0]
    below, above = [n for n in cuttable if n < size][-1:], [n for n in cuttable if n > size][:1]
    assert offered == below + above
    for other in offered:
        check_divisible(other, m, data)


@given(counts, st.integers(1, 5))
def test_microbatches_keep_the_order(m: int, rows: int):
    batch = dict(inputs=np.arange(m * rows * 2).reshape(-1, 2), more=(np.arange(m * rows),))
    pieces = split_microbatches(batch, m)
    assert pieces["inputs"].shape == (m, rows, 2)
    np.testing.assert_array_equal(np.concatenate(list(pieces["inputs"])), batch["inputs"])
    np.testing.assert_array_equal(pieces["more"][0][-1], batch["more"][0][-rows:])


def test_the_spec_is_of_one_microbatch_of_one_data_rank_in_jax_dtypes():
    batch = dict(
        inputs=np.zeros((24, 5)), ids=np.zeros(24, np.int64), mask=jnp.zeros((24, 2), bool)
    )
    spec = microbatch_spec(batch, 3, 2)
    assert describe_batch(spec) == "{'ids': int32[4], 'inputs': float32[4,5], 'mask': bool[4,2]}"


def test_leading_sizes_must_agree():
    assert batch_size(dict(inputs=np.zeros((3, 2)), more=[np.zeros(3)])) == 3
    batch = dict(inputs=np.zeros((3, 2)), more=[np.zeros(4)])
    with pytest.raises(BatchError, match=r"inputs: 3, more/0: 4\. Make them equal"):
        batch_size(batch)
    with pytest.raises(BatchError, match="'lr' is a scalar"):
        batch_size(dict(inputs=np.zeros((3, 2)), lr=0.1))


def test_fields_are_asked_for_by_name():
    batch = dict(inputs=0, segments=0)
    check_fields(batch, {"00_Embed": ("segments",), "01_Block": ()})
    with pytest.raises(BatchError, match=r"layer 00_Embed reads batch field 'masks'.*'segments'"):
        check_fields(batch, {"00_Embed": ("masks",)})
    with pytest.raises(BatchError, match=r"no field 'inputs', which the first layer.*'targets'"):
        check_fields(dict(targets=0), {})
    wrong: Any = (1, 2)
    with pytest.raises(BatchError, match=r"dict of arrays.*got tuple"):
        check_fields(wrong, {})


RANGES = dict(inputs=(0, 16))


@pytest.mark.parametrize("make", [np.array, jnp.array])
@pytest.mark.parametrize(
    ("ids", "wrong", "place"), [([[0, 16]], 16, (0, 1)), ([[3], [-1]], -1, (1, 0))]
)
def test_ids_out_of_range_are_shown_with_their_place(make: Any, ids: Any, wrong: int, place: Any):
    said = (
        rf"'inputs' holds {wrong} at {re.escape(str(place))}, outside 0 <= id < 16 \(1 such of 2\)"
    )
    with pytest.raises(BatchError, match=said):
        check_ids(dict(inputs=make(ids)), RANGES)


@pytest.mark.parametrize("ids", [[0.0], [True], [np.nan]])
def test_what_are_no_integers_are_no_ids(ids: Any):
    with pytest.raises(BatchError, match=r"'inputs' holds (float64|bool), expected the integers"):
        check_ids(dict(inputs=np.array(ids)), RANGES)


def test_ids_that_int32_cannot_hold_are_seen_before_they_are_cut():
    with pytest.raises(BatchError, match=f"holds {2**40 + 1} at"):
        check_ids(dict(inputs=np.array([2**40 + 1])), RANGES)  # 1, in 32 bits
    check_ids(dict(inputs=np.array([65535], np.uint16)), dict(inputs=(0, 65536)))


def test_targets_may_be_ignored_and_nothing_else_may_be_negative():
    ranges = dict(inputs=(0, 16), targets=(0, 16))
    check_ids(dict(inputs=np.array([1]), targets=np.array([-100])), ranges)
    for wrong in (dict(inputs=np.array([-100])), dict(targets=np.array([-1]))):
        with pytest.raises(BatchError, match="outside 0 <= id < 16"):
            check_ids(wrong, ranges)


def test_ids_in_range_pass_and_other_fields_are_let_be():
    check_ids(dict(inputs=np.array([0, 15]), targets=np.array([99])), RANGES)
    check_ids(dict(targets=np.array([99])), RANGES)
    # Values are not known while tracing.
    jax.eval_shape(lambda x: check_ids(dict(inputs=x), RANGES), jnp.array([99]))


@pytest.mark.parametrize("field", ["inputs", "targets"])
def test_a_run_refuses_ids_that_its_model_does_not_have(tmp_path, text, monkeypatch, field):
    read = Batches.__getitem__

    def with_a_bad_one(self, number):
        batch = read(self, number)
        batch[field][2, 3] = 256
        return batch

    monkeypatch.setattr(Batches, "__getitem__", with_a_bad_one)
    config = dataclasses.replace(
        a_config(tmp_path),
        model=ModelConfig(layers=1, width=8, heads=2),
        pipeline=PipelineConfig(ranks=1, data=1, microbatches=1),
    )
    engine = build_engine(config)
    engine = engine._replace(init=lambda key, batch: engine.abstract_state(batch))
    said = rf"'{field}' holds 256 at \(2, 3\), outside 0 <= id < 256 \(1 such of 64\)"
    with pytest.raises(BatchError, match=said):
        trained(config, engine)


@pytest.mark.parametrize("shape", [(4,), (4, 3, 2), ()])
@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (gpt(GPTConfig(width=8, num_layers=1)), r"integers \[batch, time\]"),
        (gpt(GPTConfig(width=8, num_layers=1, tied=True)), r"integers \[batch, time\]"),
        (llama(LlamaConfig(width=8, num_layers=1)), r"integers \[batch, time\]"),
        (vit(ViTConfig(width=8, num_layers=1)), r"images: floats or uint8, \[batch, height"),
    ],
)
def test_models_refuse_inputs_of_another_shape(layers: Any, expected: str, shape: Any):
    batch = dict(inputs=np.zeros(shape, np.int32), targets=np.zeros(4, np.int32))
    model = jp.PipelineModule(layers, jp.losses.cross_entropy)
    said = re.escape(f"of type int32 and shape {shape}, expected ") + expected
    with pytest.raises(LayerError, match=said):
        model.outline(batch)
