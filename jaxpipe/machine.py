"""What an engine's functions share: its parts, and what it has traced and compiled so far."""

import dataclasses
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxpipe.batch import check_ids, microbatch_spec
from jaxpipe.compiler_options import CompilerOptions, merged, preset
from jaxpipe.decoding import Decoder
from jaxpipe.errors import JaxpipeError, OptimizerError
from jaxpipe.executor.lower import lower
from jaxpipe.executor.program import Program
from jaxpipe.feed import Feed
from jaxpipe.fresh import FreshRows
from jaxpipe.gather import whole
from jaxpipe.limits import place_limits, within
from jaxpipe.loss_scale import scale_of
from jaxpipe.memory import StepMemory, step_memory
from jaxpipe.mesh import TENSOR, traced_on
from jaxpipe.model import Logical, Outline
from jaxpipe.norms import global_norm, layer_norms
from jaxpipe.optimizer import PlacedOptimizer
from jaxpipe.partition import Partition
from jaxpipe.schedules import Schedule, Timeline, forward_only
from jaxpipe.spec import abstract, is_traced
from jaxpipe.spread import Held, held, join
from jaxpipe.stages import Stages, build_stages, check_remat
from jaxpipe.state import TrainState
from jaxpipe.step import Step
from jaxpipe.storage import Placed, abstract_placed, logical, place, specs
from jaxpipe.structure import Settings, Structure, lockstep_on, settle
from jaxpipe.timeline import measure, operations_of

PyTree = Any
Batch = Mapping[str, PyTree]
EVERYWHERE = PartitionSpec()


class Machine:
    """The functions of an `Engine`, by the same names; see there and `jaxpipe.initialize`."""

    def __init__(self, settings: Settings):
        check_remat(settings.remat)
        self._settings, self._model = settings, settings.model
        self.mesh = self._mesh = settings.mesh
        self.lockstep = lockstep_on(settings.mesh, settings.remat)
        self._structure: Structure | None = None
        self._cache: dict[Hashable, Any] = {}
        self._feed = Feed(settings.mesh)
        self._data_spec = self._feed.spec

    # What is known of a batch's shapes.

    def _settled(self, batch: Batch) -> Structure:
        if self._structure is None:
            self._structure = settle(self._settings, self._outline(batch), self._local(batch))
        return self._structure

    def _once(self, what: str, batch: Batch, make: Callable[[], Any]) -> Any:
        """`make()`, remembered by what it is and by the batch's shapes."""
        leaves, tree = jax.tree.flatten(self._feed.abstract(batch))
        key = (what, tree, tuple((x.shape, str(x.dtype)) for x in leaves))
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]

    def _outline(self, batch: Batch) -> Outline:
        count, num_data = self._settings.schedule.num_microbatches, self._settings.num_data
        spec = lambda: microbatch_spec(self._feed.abstract(batch), count, num_data)
        make = lambda: self._model.outline(spec())
        return self._once("outline", batch, make)

    def _local(self, batch: Batch) -> Outline:
        """The outline on one device."""
        make = lambda: self._model.outline_on(self._mesh, self._outline(batch))
        return self._once("local", batch, make)

    def stages(self, batch: Batch, *, train: bool = True) -> Stages:  # noqa: D102
        def make() -> Stages:
            given, settled, local = self._settings, self._settled(batch), self._local(batch)
            build = lambda: build_stages(
                self._model, local, settled.partition, settled.schedule.placement, settled.layout,
                remat=given.remat, train=train, scaled=train and given.loss_scale is not None,
            )  # fmt: skip
            return traced_on(self._mesh, build)

        return self._once(f"stages {train}", batch, make)

    def _step(self, batch: Batch, *, train: bool) -> Step:
        def make() -> Step:
            given, settled = self._settings, self._settled(batch)
            table, stages = settled.schedule, self.stages(batch, train=train)
            if not train:
                table = forward_only(
                    table.num_ranks, table.num_microbatches, placement=table.placement
                )
            fuse = train and self.lockstep.fuse
            always = self.lockstep.steady and table.latency > 0
            program = lower(table, stages.codes, stages.first_layers, fuse=fuse, always=always)
            return Step(
                program, stages.stations, settled.layout, given.zero, table.num_microbatches,
                given.num_data, self._model.compute_dtype, given.fill, given.in_turn,
                tuple(self._model.metric_fns),
            )  # fmt: skip

        return self._once(f"step {train}", batch, make)

    def training_schedule(self) -> Schedule:  # noqa: D102
        if isinstance(self._settings.schedule, Schedule):
            return self._settings.schedule
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

    def memory(self, batch: Batch) -> StepMemory:  # noqa: D102
        def make() -> StepMemory:
            step, optimizer = self._step(batch, train=True), self._settings.optimizer
            return step_memory(step, optimizer, self._feed.abstract(batch), self._mesh)

        return self._once("memory", batch, make)

    # Functions that run on the mesh.

    def _on_mesh(self, fn: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        return jax.shard_map(
            fn, mesh=self._mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )

    def compiler_options(self) -> CompilerOptions:  # noqa: D102
        platform = self._mesh.devices.flat[0].platform
        found = preset(platform, jax.__version__, self.training_schedule().latency)
        return merged(found, self._settings.compiler_options)

    def _jit(self, what: str, batch: Batch, make: Callable[[], Any], **settings: Any) -> Any:
        """`make()`, jitted once; with compiler options where JAX takes them.

        Within a user's own `jax.jit` it takes none: there they are the user's to give.
        """
        options = self.compiler_options() or None
        if options and is_traced(jnp.zeros(())):
            options = None
        jitted = lambda: jax.jit(make(), compiler_options=options, **settings)
        return self._once(f"{what} {options is None}", batch, jitted)

    def _put(self, batch: Batch) -> Batch:
        """Checks a batch on the host and lays it out over `data`; an abstract one as well."""
        leaves, sharding = jax.tree.leaves(dict(batch)), NamedSharding(self._mesh, self._data_spec)
        if any(is_traced(leaf) for leaf in leaves):
            return batch
        if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
            spec = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
            return jax.tree.map(spec, abstract(dict(batch)))
        if self._settings.check_ids:
            check_ids(batch, self._model.id_ranges)
        return self._feed.put(batch)

    def local_rows(self, size: int) -> slice:  # noqa: D102
        return self._feed.rows(size)

    def init(  # noqa: D102
        self, key: jax.Array, batch: Batch, params: Placed | None = None
    ) -> TrainState:
        key = (
            key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)
        )
        settled = self._settled(batch)
        optimizer = settled.optimizer  # first: it may be one that cannot be used
        params = self._fresh(settled, key, batch) if params is None else params
        run_key = jax.random.fold_in(key, len(self._model.layers))  # no layer has this one
        opt_state = None
        if optimizer is not None:
            start = lambda p: join(optimizer.init(held(p)), optimizer.state)
            trees = (specs(settled.layout),), specs(optimizer.state)
            make = lambda: jax.jit(self._on_mesh(start, *trees))
            opt_state = self._once("optimizer.init", batch, make)(params)
        everywhere = NamedSharding(self._mesh, EVERYWHERE)
        return self._start(
            jax.device_put(self._counters(run_key), everywhere), params, opt_state, run_key
        )

    def _counters(self, key: jax.Array) -> Any:
        """What a fresh state holds besides placed trees: step, key, skipped steps, loss scale."""
        scaling = self._settings.loss_scale
        scale = None if scaling is None else scaling.start()
        return jnp.int32(0), jax.random.key_data(key), jnp.int32(0), scale

    def _start(self, counters: Any, params: Placed, opt_state: Any, key: jax.Array) -> TrainState:
        step, data, skipped, scale = counters
        impl = str(jax.random.key_impl(key))
        return TrainState(step, params, opt_state, data, skipped, scale, impl)

    def _fresh(self, settled: Structure, key: jax.Array, batch: Batch) -> Placed:
        if any(layer.given is not None for layer in self._model.layers):
            return place(
                settled.layout, self._mesh, self._model.init(key, self._outline(batch).batch)
            )
        outline, layout = self._outline(batch), settled.layout
        impl = str(jax.random.key_impl(key))

        def make() -> Callable[..., Any]:
            placement = settled.schedule.placement
            fresh = FreshRows(
                self._model,
                outline,
                settled.partition,
                placement,
                layout,
                jax.eval_shape(lambda: key),
            )
            build = lambda data: join(
                Held(fresh(jax.random.wrap_key_data(data, impl=impl)), []), layout
            )
            return jax.jit(self._on_mesh(build, (EVERYWHERE,), specs(layout)))

        return self._once(f"init {impl}", batch, make)(jax.random.key_data(key))

    def abstract_state(self, batch: Batch) -> TrainState:  # noqa: D102
        settled = self._settled(batch)
        sharding = NamedSharding(self._mesh, EVERYWHERE)
        key, optimizer = jax.random.key(0), settled.optimizer
        everywhere = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        counters = jax.tree.map(everywhere, jax.eval_shape(self._counters, key))
        params = abstract_placed(settled.layout, self._mesh)
        opt_state = None if optimizer is None else abstract_placed(optimizer.state, self._mesh)
        return self._start(counters, params, opt_state, key)

    def value_and_grad(  # noqa: D102
        self,
        params: Placed,
        batch: Batch,
        key: jax.Array | None = None,
        scale: jax.Array | float | None = None,
    ) -> tuple[jax.Array, Placed]:
        batch = self._put(batch)
        key = jax.random.key(0) if key is None else key
        scale = scale_of(scale, self._settings.loss_scale)
        step = self._step(batch, train=True)
        cut = self._settings.zero.cuts_gradients
        moving = step.layout.trainable.cut if cut else step.layout.trainable

        def make() -> Callable[..., Any]:
            def run(params: Placed, batch: Batch, key: Any, scale: Any) -> tuple[Any, Placed]:
                rows = held(params).rows
                totals, grads = step.gradients(rows, batch, key, cut=cut, scale=scale)
                return totals.mean, join(Held(grads, []), moving)

            specs_in = (specs(step.layout), self._data_spec, EVERYWHERE, EVERYWHERE)
            return self._on_mesh(run, specs_in, (EVERYWHERE, specs(moving)))

        return self._jit("value_and_grad", batch, make)(params, batch, key, scale)

    def train_batch(  # noqa: D102
        self, state: TrainState, batch: Batch, limits: Mapping[str, Any] | None = None
    ) -> tuple[TrainState, Any]:
        batch = self._put(batch)
        # Without limits the program is the one that `compiled` gives.
        more = () if limits is None else (place_limits(limits, self._mesh),)
        return self._train(batch)(state, batch, *more)

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
        make = lambda: self._train_step(batch, optimizer)
        return self._jit("train", batch, make, donate_argnums=0)

    def _train_step(self, batch: Batch, optimizer: PlacedOptimizer) -> Callable[..., Any]:
        step = self._step(batch, train=True)

        def local(
            params: Placed, opt_state: Placed, batch: Batch, key: Any, scale: Any, limits: Any
        ) -> Any:
            weights, moments = held(params), held(opt_state)
            totals, grads = step.gradients(weights.rows, batch, key, cut=True, scale=scale)
            norm = global_norm(optimizer.params, grads)
            # Sums over all ranks, so all ranks agree.
            finite = jnp.isfinite(norm) & jnp.isfinite(totals.mean)
            metrics: Any = dict(loss=totals.mean, weight=totals.weight, grad_norm=norm)
            good = finite & within(metrics, limits)
            weights, moments = optimizer.update(Held(grads, []), moments, weights, good)
            if self._settings.layer_norms:
                metrics["layer_norms"] = layer_norms(optimizer.params, grads)
            told = metrics, finite, good
            return join(weights, step.layout), join(moments, optimizer.state), *told

        trees = specs(step.layout), specs(optimizer.state)
        specs_in = (*trees, self._data_spec, *[EVERYWHERE] * 3)
        run = self._on_mesh(local, specs_in, (*trees, *[EVERYWHERE] * 3))
        scaling = self._settings.loss_scale

        def train(state: TrainState, batch: Batch, limits: Any = None) -> tuple[TrainState, Any]:
            before = state.loss_scale
            scale = before and before.scale
            params, opt_state, metrics, finite, good = run(
                state.params, state.opt_state, batch, state.step_key, scale, limits
            )
            new = dataclasses.replace(
                state, step=state.step + 1, params=params, opt_state=opt_state,
                skipped=jnp.where(good, 0, state.skipped + 1),
                loss_scale=scaling.next(before, finite) if scaling and before else None,
            )  # fmt: skip
            more = {} if scale is None else dict(loss_scale=scale)
            return new, metrics | dict(skipped=new.skipped) | more

        return train

    def eval_batch(self, state: TrainState, batch: Batch) -> Any:  # noqa: D102
        batch = self._put(batch)
        step = self._step(batch, train=False)

        def make() -> Callable[..., Any]:
            def run(params: Placed, batch: Batch) -> Any:
                totals = step.metrics(held(params).rows, batch, jax.random.key(0))
                means = {name: total.mean for name, total in totals.items()}
                return means | dict(weight=totals["loss"].weight)

            return self._on_mesh(run, (specs(step.layout), self._data_spec), EVERYWHERE)

        return self._jit("eval", batch, make)(state.params, batch)

    def predict(self, state: TrainState, batch: Batch) -> PyTree:  # noqa: D102
        batch = self._put(batch)
        step = self._step(batch, train=False)

        def make() -> Callable[..., Any]:
            spec, whole = self._local(batch).outputs[-1], self._outline(batch).outputs[-1]
            specs_out = jax.tree.map(self._output_spec, spec, whole)

            def run(params: Placed, batch: Batch) -> PyTree:
                return step.outputs(held(params).rows, batch, jax.random.key(0), spec)

            specs_in = (specs(step.layout), self._data_spec)
            return self._on_mesh(run, specs_in, specs_out)

        return whole(self._jit("predict", batch, make)(state.params, batch))

    def decoder(self, *, num_microbatches: int, rows: int, capacity: int) -> Decoder:  # noqa: D102
        settled = self._seen("decoder")
        key = ("decoder", num_microbatches, rows, capacity)
        if key not in self._cache:
            self._cache[key] = Decoder(
                self._model, self._mesh, settled.layout, settled.partition,
                settled.schedule.placement, num_microbatches, rows, capacity,
                self._settings.in_turn, self._settings.fill, self.compiler_options() or None,
            )  # fmt: skip
        return self._cache[key]

    def _output_spec(self, local: Any, whole: Any) -> PartitionSpec:
        """How an output `[rows, ...]` lies on the mesh: what is cut shows in its shape."""
        pairs = zip(local.shape[1:], whole.shape[1:], strict=True)
        return PartitionSpec(
            *self._data_spec or (None,), *(TENSOR if a != b else None for a, b in pairs)
        )

    # Logical trees.

    def place(self, tree: Logical) -> Placed:  # noqa: D102
        return place(self._seen("place").layout, self._mesh, tree)

    def logical(self, placed: Placed) -> PyTree:  # noqa: D102
        return logical(placed)
