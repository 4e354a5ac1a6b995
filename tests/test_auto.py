"""`schedule="auto"`: found at the first batch, within memory, and right."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from zoo import (
    Batch,
    Gentle,
    gentle,
    largest_error,
    linen,
    mean_loss,
    unlike,
    vectors,
    weighted_loss,
)

import jaxpipe as jp
from jaxpipe.auto import Estimate
from jaxpipe.costs import layer_costs
from jaxpipe.errors import JaxpipeError, PartitionError, ScheduleError
from jaxpipe.mesh import traced_on
from jaxpipe.models import GPTConfig, gpt
from jaxpipe.partition import partition
from jaxpipe.schedules import NAMES, Lockstep, Op, Schedule, by_name, simulate, verify
from jaxpipe.stages import Stages, build_stages
from jaxpipe.storage.parameters import parameter_layout

RANKS, MICROBATCHES = 2, 6


def engine_for(model: jp.PipelineModule, **settings: Any) -> jp.Engine:
    return jp.initialize(
        model, mesh=jp.make_mesh(pipe=RANKS), schedule="auto", num_microbatches=MICROBATCHES,
        fill=float("nan"), **settings,
    )  # fmt: skip


def found_for(model: jp.PipelineModule, batch: Batch, **settings: Any) -> Schedule:
    engine = engine_for(model, **settings)
    engine.partition(batch)
    return engine.schedule


def stages_of(model: jp.PipelineModule, batch: Batch, schedule: Schedule) -> Stages:
    """The stages that a schedule runs, as an engine traces them."""
    microbatch = jax.tree.map(lambda x: x[: len(x) // MICROBATCHES], batch)
    outline = model.outline(microbatch)
    cut = partition(layer_costs(model, outline), schedule.num_stages, "parameters")
    rank_of = [schedule.placement[cut.stage_of(i)] for i in range(len(model.layers))]
    layout = parameter_layout(model.layers, outline, rank_of, RANKS)
    return build_stages(model, outline, cut, schedule.placement, layout, train=True)


@pytest.mark.parametrize(
    ("model", "limit"),
    [
        pytest.param(gentle(6), 3000, id="gentle"),
        pytest.param(unlike(8), None, id="unlike", marks=pytest.mark.slow),
    ],
)
def test_its_gradients_are_the_unsplit_models(model: jp.PipelineModule, limit: float | None):
    batch = vectors(MICROBATCHES)
    params = jax.jit(functools.partial(model.init, batch=batch))(jax.random.key(0))
    want_loss, want = jax.jit(jax.value_and_grad(model.loss))(params, batch)
    engine = engine_for(model, memory_limit=limit)
    state = engine.init(jax.random.key(0), batch)
    loss, grads = engine.value_and_grad(state.params, batch)
    np.testing.assert_allclose(loss, want_loss, rtol=1e-6)
    assert largest_error(engine.logical(grads), want) < 1e-6
    verify(engine.schedule)


def test_every_function_of_the_engine_works_with_it():
    model, batch = gentle(4), vectors(2 * MICROBATCHES)
    engine = jp.initialize(
        model, mesh=jp.make_mesh(pipe=RANKS, data=2), optimizer=optax.sgd(0.1),
        schedule="auto", num_microbatches=MICROBATCHES,
    )  # fmt: skip
    abstract = engine.abstract_state(batch)
    state = engine.init(jax.random.key(0), batch)
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, abstract)
    params = engine.logical(state.params)
    outputs = jax.jit(model.apply)(params, batch)
    np.testing.assert_allclose(engine.predict(state, batch), outputs, rtol=1e-5, atol=1e-6)
    want, grads = jax.jit(jax.value_and_grad(model.loss))(params, batch)
    np.testing.assert_allclose(engine.eval_batch(state, batch)["loss"], want, rtol=1e-6)
    placed = engine.place(params)
    state, metrics = engine.train_batch(state, batch)
    np.testing.assert_allclose(metrics["loss"], want, rtol=1e-6)
    moved = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
    assert largest_error(engine.logical(state.params), moved) < 1e-6
    assert largest_error(engine.logical(placed), params) == 0


def test_it_is_as_fast_as_every_named_schedule_within_memory():
    model, batch = gentle(6), vectors(MICROBATCHES)
    found = found_for(model, batch, num_chunks=1)
    known = Estimate.of(stages_of(model, batch, found), jp.make_mesh(pipe=RANKS))
    assert known.split
    lockstep = Lockstep("all", fuse=True)
    limit = (known.row + known.left) * RANKS
    assert known.allocated(found) <= limit
    fastest = simulate(found, known.costs, lockstep).makespan
    within = set()
    for name in NAMES:
        table = by_name(name, RANKS, MICROBATCHES)
        if table.placement == found.placement and known.allocated(table) <= limit:
            within.add(name)
            assert fastest <= simulate(table, known.costs, lockstep).makespan * 1.01
    assert within >= {"1f1b", "zb-h1"}


def test_less_memory_is_kept_to():
    model, batch = linen(5), vectors(12)
    roomy = found_for(model, batch, num_chunks=1)
    known = Estimate.of(stages_of(model, batch, roomy), jp.make_mesh(pipe=RANKS))
    for limit in (1.5 * known.row, 2.1 * known.row, known.row + known.left + 1):
        tight = engine_for(model, num_chunks=1, memory_limit=limit)
        program = tight.program(batch)
        allocated = program.num_rows * known.row + program.num_left * known.left
        assert allocated <= known.allocated(tight.schedule) <= limit


def test_the_least_that_is_needed_is_said():
    with pytest.raises(ScheduleError, match="one microbatch in all of its stages takes"):
        found_for(gentle(6), vectors(6), memory_limit=10)


class Switch(nn.Module):
    """Its backward is one `cond`, which computes both gradients."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        w = self.param("w", nn.initializers.normal(), (x.shape[-1], x.shape[-1]))
        twice = lambda x, w: jnp.tanh(x @ w) * 2
        return lax.cond(x[0, 0] > 0, twice, lambda x, w: x @ w, x, w)


def test_a_backward_that_cannot_be_cut_stays_whole():
    layers = [*[jp.LayerSpec(Switch)] * 4, jp.LayerSpec(nn.Dense, 3)]
    found = found_for(jp.PipelineModule(layers, mean_loss), vectors(6))
    assert {action.op for action in found.ticks()} == {Op.F, Op.B}


def test_a_model_of_few_layers_gets_few_stages():
    assert found_for(gentle(2), vectors(6)).num_stages == 2
    assert found_for(gentle(3), vectors(6)).num_stages == 2
    with pytest.raises(PartitionError, match="stages"):
        found_for(gentle(1), vectors(6))


def test_stages_of_several_on_a_rank_may_hold_as_much_as_one_stage_would():
    layers = [*[jp.LayerSpec(nn.Dense, 8)] * 8]
    two, four = (
        jp.PipelineModule(layers, lambda y, batch: jnp.mean(y**2), num_stages=count)
        for count in (2, 4)
    )
    for model in (two, four):
        table = found_for(model, vectors(12))
        share = RANKS / table.num_stages
        assert max(simulate(table).held) * share >= RANKS


@pytest.mark.parametrize(
    ("partition", "remat"),
    [
        ((0, 2, 3, 4, 5), "full"),
        *[
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [("type:Gentle", "none"), ("flops", 1), ((0, 3, 5), 1)]
        ],
    ],
)
def test_partitions_and_recomputation_are_the_users(partition: Any, remat: Any):
    blocks = [jp.LayerSpec(Gentle) for _ in range(4)]
    model = jp.PipelineModule(
        [*blocks, jp.LayerSpec(nn.Dense, 3)], weighted_loss, partition_method=partition
    )
    batch = vectors(MICROBATCHES)
    engine = engine_for(model, remat=remat)
    state = engine.init(jax.random.key(0), batch)
    cut = engine.partition(batch)
    assert not isinstance(partition, tuple) or tuple(cut.boundaries) == partition
    want = jax.jit(model.loss)(engine.logical(state.params), batch)
    loss, _ = engine.value_and_grad(state.params, batch)
    np.testing.assert_allclose(loss, want, rtol=1e-6)
    assert engine.lockstep.fuse == (remat == "none")


def test_a_first_stage_that_is_frozen_sends_nothing_back():
    blocks = [jp.LayerSpec(nn.Dense, 8, frozen=i < 2) for i in range(3)]
    model = jp.PipelineModule([*blocks, jp.LayerSpec(nn.Dense, 3)], mean_loss)
    batch = vectors(MICROBATCHES)
    engine = engine_for(model)
    params = engine.init(jax.random.key(0), batch).params
    want = jax.jit(model.loss)(engine.logical(params), batch)
    np.testing.assert_allclose(engine.value_and_grad(params, batch)[0], want, rtol=1e-6)


def test_a_model_that_asks_for_stages_gets_them():
    for count in (2, 4):
        model = jp.PipelineModule(
            [*[jp.LayerSpec(nn.Dense, 8)] * 5, jp.LayerSpec(nn.Dense, 3)], mean_loss,
            num_stages=count,
        )  # fmt: skip
        assert found_for(model, vectors(6)).num_stages == count
    assert found_for(gentle(6), vectors(6), num_chunks=1).num_stages == 2

    model = jp.PipelineModule([jp.LayerSpec(nn.Dense, 8)] * 6, mean_loss, num_stages=5)
    with pytest.raises(ScheduleError, match="num_stages=5; on 2 ranks 'auto' tries 2 or 4"):
        engine_for(model)


def test_what_does_not_fit_into_memory_is_said_first():
    with pytest.raises(ScheduleError, match="no schedule fits"):  # four stages cannot be had
        found_for(gentle(3), vectors(6), memory_limit=10)


def test_before_a_batch_there_is_no_schedule():
    with pytest.raises(JaxpipeError, match="has seen no batch"):
        _ = engine_for(gentle(4)).schedule


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        (dict(num_microbatches=0), "num_microbatches=0"),
        (dict(num_chunks=0), "num_chunks=0"),
        (dict(memory_limit=-1.0), "memory_limit=-1.0"),
        (dict(memory_limit=float("nan")), "memory_limit=nan"),
        (dict(num_microbatches=None), "needs num_microbatches"),
        (dict(schedule="1f1b", memory_limit=5.0), "only schedule='auto' chooses by memory"),
    ],
)
def test_mistakes_are_told_at_once(settings: dict[str, Any], part: str):
    given: dict[str, Any] = dict(schedule="auto", num_microbatches=4) | settings
    with pytest.raises(ScheduleError, match=part):
        jp.initialize(gentle(4), mesh=jp.make_mesh(pipe=2), **given)


def test_the_loop_that_will_run_is_the_one_that_is_simulated():
    assert engine_for(gentle(4)).lockstep == Lockstep("all", fuse=True)


def test_it_counts_what_one_tensor_rank_computes():
    config = GPTConfig(vocab_size=32, width=32, num_layers=2, num_heads=4, sequence_length=16)
    model = jp.PipelineModule(gpt(config), jp.nn.cross_entropy)
    ids = np.zeros((2 * MICROBATCHES, 16), np.int32)
    batch, found = dict(inputs=ids, targets=ids), []
    for tensor in (1, 2):
        mesh = jp.make_mesh(pipe=2, tensor=tensor)
        engine = jp.initialize(
            model, mesh=mesh, schedule="auto", num_microbatches=MICROBATCHES, num_chunks=1
        )
        engine.partition(batch)
        verify(engine.schedule)
        outline = model.outline(jax.tree.map(lambda x: x[:2], batch))
        local = model.outline_on(mesh, outline)
        table = by_name("1f1b", 2, MICROBATCHES)
        cut = partition(layer_costs(model, outline), 2, "parameters")
        rank_of = [cut.stage_of(i) for i in range(len(model.layers))]
        layout = parameter_layout(model.layers, outline, rank_of, 2, num_tensor=tensor)
        build = lambda c=cut, t=table, y=layout, o=local: build_stages(
            model, o, c, t.placement, y, train=True
        )
        found.append(Estimate.of(traced_on(mesh, build), mesh).costs)
    for op in "FBIW":
        assert 0.45 < sum(getattr(found[1], op)) / sum(getattr(found[0], op)) < 0.65, op
