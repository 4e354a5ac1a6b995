"""The engine: pure functions that train a model through a pipeline, each one compiled call."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import optax
from jax.sharding import Mesh

from jaxpipe.compiler_options import CompilerOptions
from jaxpipe.decoding import Decoder
from jaxpipe.executor.program import Program
from jaxpipe.loss_scale import LossScale, resolve_loss_scale
from jaxpipe.machine import Machine
from jaxpipe.memory import StepMemory
from jaxpipe.model import Logical, PipelineModule
from jaxpipe.partition import Partition
from jaxpipe.schedules import Lockstep, Schedule, Timeline
from jaxpipe.stages import Remat, Stages
from jaxpipe.state import TrainState
from jaxpipe.storage import Placed
from jaxpipe.structure import Settings, resolve
from jaxpipe.zero import Zero

PyTree = Any
Batch = Mapping[str, PyTree]
Metrics = dict[str, Any]


class Engine(NamedTuple):
    """Pure functions: state in, state out. The state that goes in is donated.

    Where the mesh spans processes, all of them call each function together, and NumPy arrays in a
    batch are a process's own rows (`local_rows`); arrays that span processes are taken as they are.

    Attributes:
      init: `(key, batch, params) -> state`; each device builds its own stages only. `batch` gives
        shapes; `params`, placed, take the place of fresh ones where they are given.
      train_batch: `(state, batch, limits) -> (state, metrics)`: one global batch, one step of the
        optimizer. Metrics are scalars: `loss`, `weight` (what a loss sum was divided by),
        `grad_norm` (over all stages, before clipping), `skipped`, `loss_scale` of this step where
        there is one; and, if asked for, `layer_norms`: {layer name: norm of its gradients, before
        clipping}.
        Where loss or gradients are not finite, on whatever rank, parameters and optimizer state
        stay as they are on all, and so where `loss` or `grad_norm` is above what `limits`, if
        given, has for it: floats, by name. `skipped` counts such steps in a row.
      eval_batch: `(state, batch) -> metrics`, by a forward-only schedule: `loss` and `weight`, and
        each of the model's `metric_fns`, by name.
      predict: `(state, batch) -> outputs` of the last layer, batch first; of the whole batch, on
        every process.
      value_and_grad: `(params, batch, key, scale) -> (loss, grads)` for one's own train step; may
        be called inside `jax.jit`. `grads` is placed as the trainable part of `params` is, and cut
        from ZeRO stage 2 on. `scale` is for an engine with a loss scale, whose first one is used by
        default; `grads` come divided by it.
      decoder: `(*, num_microbatches, rows, capacity) -> Decoder`, which takes prompts through the
        pipeline and goes on with them; `jaxpipe.generate` does so with text. Needs `partition` or
        `init` to have run once.
      place: `{layer name: tree} -> params`, placed. Needs `partition` or `init` to have run once.
      logical: the way back, for parameters, gradients and optimizer states; every process gets
        all of it, in its own memory.
      local_rows: `rows of a global batch -> slice` of those that this process gives: all of them
        in a process that is alone, or that has a part of every pipeline.
      abstract_state: `batch -> state` of `jax.ShapeDtypeStruct` with shardings, for restoring.
      partition: `batch -> Partition`, which can be printed.
      program: `batch -> Program`, which can be printed.
      stages: `batch -> Stages`: what each stage computes, traced, and what it keeps.
      memory: `batch -> StepMemory`: bytes on each device of a train step, before it is compiled.
        The mesh may be of described devices: see `jaxpipe.planner`.
      compiled: `(state, batch) -> the compiled train step`, for its text and memory analysis. Both
        may be abstract, as from `abstract_state`, and the mesh that of a described topology: see
        `jax.experimental.topologies`.
      timeline: `(state, batch) -> (state, metrics, Timeline)`: a train step, and when each rank's
        actions began and ended, in seconds. The first step of a process is slower than others.
      training_schedule: `() -> Schedule`; read it as `schedule`.
      compiler_options: `() -> what XLA is told` wherever a function of the engine is compiled by
        itself; within one's own `jax.jit`, give it these. Empty on CPU.
      mesh: what it runs on.
      lockstep: how the ranks wait for each other in this engine's loop, for `schedules.simulate`.
    """

    init: Callable[..., TrainState]
    train_batch: Callable[..., tuple[TrainState, Metrics]]
    eval_batch: Callable[[TrainState, Batch], Metrics]
    predict: Callable[[TrainState, Batch], PyTree]
    value_and_grad: Callable[..., tuple[jax.Array, PyTree]]
    decoder: Callable[..., Decoder]
    place: Callable[[Logical], Placed]
    logical: Callable[[Placed], PyTree]
    local_rows: Callable[[int], slice]
    abstract_state: Callable[[Batch], TrainState]
    partition: Callable[[Batch], Partition]
    program: Callable[[Batch], Program]
    stages: Callable[[Batch], Stages]
    memory: Callable[[Batch], StepMemory]
    compiled: Callable[[TrainState, Batch], Any]
    timeline: Callable[[TrainState, Batch], tuple[TrainState, Metrics, Timeline]]
    training_schedule: Callable[[], Schedule]
    compiler_options: Callable[[], CompilerOptions]
    mesh: Mesh
    lockstep: Lockstep

    @property
    def schedule(self) -> Schedule:
        """The training schedule, which can be printed.

        Raises:
          JaxpipeError: it is "auto", and the engine has seen no batch.
        """
        return self.training_schedule()


def initialize(
    model: PipelineModule,
    *,
    mesh: Mesh,
    optimizer: optax.GradientTransformation | None = None,
    schedule: str | Schedule = "1f1b",
    num_microbatches: int | None = None,
    num_chunks: int | None = None,
    memory_limit: float | None = None,
    remat: Remat = "none",
    zero: int | Zero = 0,
    loss_scale: LossScale | float | Literal["auto"] | None = "auto",
    check_ids: bool = True,
    fill: float | None = None,
    compiler_options: Mapping[str, bool | int | str | None] | None = None,
    layer_norms: bool = False,
) -> Engine:
    """Puts a model, a mesh, an optimizer and a schedule together. Nothing is compiled yet.

    Args:
      model: the layers and the loss.
      mesh: from `make_mesh`; must have a `pipe` axis.
      optimizer: from optax; it sees the logical tree `{layer name: leaves}`. Without one there is
        no `train_batch`.
      schedule: a name from `jaxpipe.schedules.NAMES`, a table of one's own, or "auto": the fastest
        that `jaxpipe.schedules.search` finds for the FLOPs of the model's stages.
      num_microbatches: how many microbatches each data rank's part of a batch is cut into; a
        `Schedule` says it itself.
      num_chunks: how many stages each rank owns, for schedules that leave it open (interleaved,
        looped-bfs, interleaved-zb; 2 by default); for "auto" the most that it may try.
      memory_limit: for "auto", bytes that a rank may have for what backwards need of forwards, and
        W of I; mailboxes not counted. By default what num_ranks microbatches take after I: ZB-H1.
      remat: what the backward pass recomputes: "none"; "full" (a stage keeps its input only);
        k (the inputs of every k layers); or a policy from `jax.checkpoint_policies`.
      zero: what the data ranks share of a rank's state rather than each holding it: 0, nothing; 1,
        the optimizer's state; 2, gradients too; 3, parameters too; `Zero` says more.
      loss_scale: what gradients are scaled by on their way, so that float16 holds them: "auto" is a
        `LossScale()` for a model that computes in float16, and none else; a number stays as it is.
      check_ids: whether batches are checked against the model's `id_ranges` on the host.
      fill: what buffers hold before they are written. Nothing reads it: NaN shows that.
      compiler_options: for XLA, over those of `compiler_options.preset`; a None takes one out.
      layer_norms: whether `train_batch` gives the norm of each layer's gradients too: a float32
        scalar a layer, and one more reading of the gradients.

    Raises:
      MeshError: when the mesh lacks the `pipe` axis, or there is no such `zero`.
      ScheduleError: when the schedule is unknown, wrong, or not for this mesh and model.
      LayerError: when `remat` means nothing.
    """
    wanted = resolve(model, mesh, schedule, num_microbatches, num_chunks, memory_limit, remat)
    zero = zero if isinstance(zero, Zero) else Zero(zero)
    scale = resolve_loss_scale(loss_scale, model.compute_dtype)
    settings = Settings(
        model, mesh, optimizer, wanted, remat, zero, scale, check_ids, fill, compiler_options,
        layer_norms,
    )  # fmt: skip
    machine = Machine(settings)
    return Engine(*(getattr(machine, name) for name in Engine._fields))
