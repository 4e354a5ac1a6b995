"""What an engine's functions share: its parts, and what it has traced and compiled so far."""

import dataclasses
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxpipe.auto import Auto
from jaxpipe.batch import check_ids, microbatch_spec
from jaxpipe.errors import JaxpipeError, OptimizerError
from jaxpipe.executor.lower import lower
from jaxpipe.executor.program import Program
from jaxpipe.feed import Feed
from jaxpipe.fresh import fresh_rows
from jaxpipe.gather import whole
from jaxpipe.mesh import DATA, PIPE, axis_size
from jaxpipe.model import Logical, Outline, PipelineModule
from jaxpipe.optimizer import PlacedOptimizer
from jaxpipe.partition import Partition
from jaxpipe.schedules import Schedule, Timeline, forward_only
from jaxpipe.spec import is_traced
from jaxpipe.spread import Held
from jaxpipe.stages import Remat, build_stages, check_remat
from jaxpipe.state import TrainState
from jaxpipe.step import Step
from jaxpipe.storage import Layout, Placed, abstract_placed, logical, place, specs
from jaxpipe.structure import Structure, lockstep_on, settle
from jaxpipe.timeline import measure, operations_of

PyTree = Any
Batch = Mapping[str, PyTree]
RANKED, EVERYWHERE = PartitionSpec(PIPE), PartitionSpec()


class Machine:
    """The functions of an `Engine`, by the same names; see there and `jaxpipe.initialize`."""

    def __init__(
        self,
        model: PipelineModule,
        mesh: Mesh,
        optimizer: optax.GradientTransformation | None,
        schedule: Schedule | Auto,
        remat: Remat,
        check_ids: bool,
        fill: float | None,
    ):
        check_remat(remat)
        self._model, self._mesh, self._optimizer = model, mesh, optimizer
        self._num_data = axis_size(mesh, DATA)
        self._wanted = schedule
        self.lockstep = lockstep_on(mesh, remat)
        self._remat, self._check_ids, self._fill = remat, check_ids, fill
        self._structure: Structure | None = None
        self._cache: dict[Hashable, Any] = {}
        self._feed = Feed(mesh)
        self._data_spec = self._feed.spec

    # What is known of a batch's shapes.

    def _settled(self, batch: Batch) -> Structure:
        if self._structure is None:
            self._structure = settle(
                self._model, self._outline(batch), self._wanted, self._optimizer, self._remat
            )
        return self._structure

    def _once(self, what: str, batch: Batch, make: Callable[[], Any]) -> Any:
        """`make()`, remembered by what it is and by the batch's shapes."""
        leaves, tree = jax.tree.flatten(self._feed.abstract(batch))
        key = (what, tree, tuple((x.shape, str(x.dtype)) for x in leaves))
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]

    def _outline(self, batch: Batch) -> Outline:
        count = self._wanted.num_microbatches
        spec = lambda: microbatch_spec(self._feed.abstract(batch), count, self._num_data)
        make = lambda: self._model.outline(spec())
        return self._once("outline", batch, make)

    def _step(self, batch: Batch, *, train: bool) -> Step:
        def make() -> Step:
            settled, outline = self._settled(batch), self._outline(batch)
            table = settled.schedule
            if not train:
                table = forward_only(
                    table.num_ranks, table.num_microbatches, placement=table.placement
                )
            stages = build_stages(
                self._model, outline, settled.partition, table.placement, settled.layout,
                remat=self._remat, train=train,
            )  # fmt: skip
            fuse = train and self.lockstep.fuse
            program = lower(table, stages.codes, stages.first_layers, fuse=fuse)
            return Step(
                program, stages.stations, settled.layout, table.num_microbatches, self._num_data,
                self._model.compute_dtype, self._fill,
            )  # fmt: skip

        return self._once(f"step {train}", batch, make)

    def schedule(self) -> Schedule:  # noqa: D102
        if isinstance(self._wanted, Schedule):
            return self._wanted
        return self._seen("schedule").schedule

    def _seen(self, what: str) -> Structure:
        if self._structure is None:
            raise JaxpipeError(
                "the engine has seen no batch, so it does not know its stages yet. Call"
                f" engine.partition(batch) or engine.init(key, batch) before engine.{what}."
            )
        return self._structure

    def partition(self, batch: Batch) -> Partition:  # noqa: D102
        return self._settled(batch).partition

    def program(self, batch: Batch) -> Program:  # noqa: D102
        return self._step(batch, train=True).program

    # Functions that run on the mesh.

    def _on_mesh(self, fn: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        return jax.shard_map(
            fn, mesh=self._mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )

    def _put(self, batch: Batch) -> Batch:
        """Checks a batch on the host and lays it out over `data`."""
        leaves = jax.tree.leaves(dict(batch))
        if any(is_traced(leaf) for leaf in leaves):
            return batch
        if self._check_ids:
            check_ids(batch, self._model.id_ranges)
        return self._feed.put(batch)

    def local_rows(self, size: int) -> slice:  # noqa: D102
        return self._feed.rows(size)

    def init(self, key: jax.Array, batch: Batch) -> TrainState:  # noqa: D102
        key = (
            key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)
        )
        settled = self._settled(batch)
        params = self._fresh(settled, key, batch)
        run_key = jax.random.fold_in(key, len(self._model.layers))  # no layer has this one
        optimizer = settled.optimizer
        opt_state = None
        if optimizer is not None:
            start = lambda p: _join(optimizer.init(_held(p)), optimizer.state)
            trees = (specs(settled.layout),), specs(optimizer.state)
            make = lambda: jax.jit(self._on_mesh(start, *trees))
            opt_state = self._once("optimizer.init", batch, make)(params)
        everywhere = NamedSharding(self._mesh, EVERYWHERE)
        step, data = jax.device_put((jnp.int32(0), jax.random.key_data(run_key)), everywhere)
        return TrainState(step, params, opt_state, data, str(jax.random.key_impl(run_key)))

    def _fresh(self, settled: Structure, key: jax.Array, batch: Batch) -> Placed:
        if any(layer.given is not None for layer in self._model.layers):
            return place(
                settled.layout, self._mesh, self._model.init(key, self._outline(batch).batch)
            )
        outline, layout = self._outline(batch), settled.layout
        impl = str(jax.random.key_impl(key))

        def build(data: jax.Array) -> Placed:
            own = jax.random.wrap_key_data(data, impl=impl)
            rows = fresh_rows(
                self._model, outline, settled.partition, settled.schedule.placement, layout, own
            )
            return _join(Held(rows, []), layout)

        make = lambda: jax.jit(self._on_mesh(build, (EVERYWHERE,), specs(layout)))
        return self._once(f"init {impl}", batch, make)(jax.random.key_data(key))

    def abstract_state(self, batch: Batch) -> TrainState:  # noqa: D102
        settled = self._settled(batch)
        sharding = NamedSharding(self._mesh, EVERYWHERE)
        key = jax.random.key(0)
        data = jax.random.key_data(key)
        opt = settled.optimizer
        return TrainState(
            jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding),
            abstract_placed(settled.layout, self._mesh),
            None if opt is None else abstract_placed(opt.state, self._mesh),
            jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=sharding),
            str(jax.random.key_impl(key)),
        )

    def value_and_grad(  # noqa: D102
        self, params: Placed, batch: Batch, key: jax.Array | None = None
    ) -> tuple[jax.Array, Placed]:
        batch = self._put(batch)
        key = jax.random.key(0) if key is None else key
        step = self._step(batch, train=True)
        moving = step.layout.trainable

        def make() -> Callable[..., Any]:
            def run(params: Placed, batch: Batch, key: jax.Array) -> tuple[jax.Array, Placed]:
                totals, grads = step.gradients(_held(params).rows, batch, key)
                return totals.loss, _join(Held(grads, []), moving)

            specs_in = (specs(step.layout), self._data_spec, EVERYWHERE)
            return jax.jit(self._on_mesh(run, specs_in, (EVERYWHERE, specs(moving))))

        return self._once("value_and_grad", batch, make)(params, batch, key)

    def train_batch(self, state: TrainState, batch: Batch) -> tuple[TrainState, Any]:  # noqa: D102
        batch = self._put(batch)
        return self._train(batch)(state, batch)

    def compiled(self, state: TrainState, batch: Batch) -> Any:  # noqa: D102
        batch = self._put(batch)
        compile = lambda: self._train(batch).lower(state, batch).compile()
        return self._once("compiled", batch, compile)

    def timeline(  # noqa: D102
        self, state: TrainState, batch: Batch
    ) -> tuple[TrainState, Any, Timeline]:
        batch = self._put(batch)
        compiled = self.compiled(state, batch)
        jax.block_until_ready((state, batch))  # an earlier step is not to be in the profile
        operations = self._once("operations", batch, lambda: operations_of(compiled.as_text()))
        (state, metrics), found = measure(
            lambda: compiled(state, batch), operations, self.program(batch),
            self._settled(batch).schedule, self._mesh,
        )  # fmt: skip
        return state, metrics, found

    def _train(self, batch: Batch) -> Any:
        optimizer = self._settled(batch).optimizer
        if optimizer is None:
            raise OptimizerError(
                "this engine has no optimizer, so it cannot train_batch. Give initialize(...,"
                " optimizer=...), or use value_and_grad in a step of your own."
            )
        return self._once("train", batch, lambda: self._train_step(batch, optimizer))

    def _train_step(self, batch: Batch, optimizer: PlacedOptimizer) -> Any:
        step = self._step(batch, train=True)

        def local(params: Placed, opt_state: Placed, batch: Batch, key: jax.Array) -> Any:
            held, moments = _held(params), _held(opt_state)
            totals, grads = step.gradients(held.rows, batch, key)
            norm = _global_norm(grads)
            held, moments = optimizer.update(Held(grads, []), moments, held)
            metrics = dict(loss=totals.loss, weight=totals.weight, grad_norm=norm)
            return _join(held, step.layout), _join(moments, optimizer.state), metrics

        trees = specs(step.layout), specs(optimizer.state)
        run = self._on_mesh(local, (*trees, self._data_spec, EVERYWHERE), (*trees, EVERYWHERE))

        def train(state: TrainState, batch: Batch) -> tuple[TrainState, Any]:
            params, opt_state, metrics = run(state.params, state.opt_state, batch, state.step_key)
            new = dataclasses.replace(
                state, step=state.step + 1, params=params, opt_state=opt_state
            )
            return new, metrics

        return jax.jit(train, donate_argnums=0)

    def eval_batch(self, state: TrainState, batch: Batch) -> Any:  # noqa: D102
        batch = self._put(batch)
        step = self._step(batch, train=False)

        def make() -> Callable[..., Any]:
            def run(params: Placed, batch: Batch) -> Any:
                totals = step.loss(_held(params).rows, batch, jax.random.key(0))
                return totals._asdict()

            return jax.jit(self._on_mesh(run, (specs(step.layout), self._data_spec), EVERYWHERE))

        return self._once("eval", batch, make)(state.params, batch)

    def predict(self, state: TrainState, batch: Batch) -> PyTree:  # noqa: D102
        batch = self._put(batch)
        step = self._step(batch, train=False)

        def make() -> Callable[..., Any]:
            spec = self._outline(batch).outputs[-1]

            def run(params: Placed, batch: Batch) -> PyTree:
                return step.outputs(_held(params).rows, batch, jax.random.key(0), spec)

            specs_in = (specs(step.layout), self._data_spec)
            return jax.jit(self._on_mesh(run, specs_in, self._data_spec))

        return whole(self._once("predict", batch, make)(state.params, batch))

    # Logical trees.

    def place(self, tree: Logical) -> Placed:  # noqa: D102
        return place(self._seen("place").layout, self._mesh, tree)

    def logical(self, placed: Placed) -> PyTree:  # noqa: D102
        return logical(placed)


def _held(placed: Placed) -> Held:
    """A rank's part of placed arrays, inside `shard_map`: `[1, ...]` becomes a row."""
    rows = {name: x.reshape(x.shape[1:]) for name, x in placed.buffers.items()}
    return Held(rows, list(placed.shared))


def _join(held: Held, layout: Layout) -> Placed:
    buffers = {name: row.reshape(1, *row.shape) for name, row in held.rows.items()}
    return Placed(buffers, tuple(held.shared), layout)


def _global_norm(rows: Mapping[str, jax.Array]) -> jax.Array:
    """Over all ranks; padding and the copies of tied leaves are zero."""
    squares = [jnp.sum(jnp.square(row.astype(jnp.float32))) for row in rows.values()]
    return jnp.sqrt(lax.psum(sum(squares, jnp.zeros(())), PIPE))
