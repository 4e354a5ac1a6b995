"""What is settled once, by what `initialize` is given and by the first batch's shapes."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import optax
from jax.sharding import Mesh

from jaxpipe.auto import Auto
from jaxpipe.costs import layer_costs
from jaxpipe.errors import ScheduleError
from jaxpipe.executor.lower import check_runnable
from jaxpipe.loss_scale import LossScale
from jaxpipe.mesh import DATA, PIPE, TENSOR, axis_size, check_mesh, traced_on
from jaxpipe.model import Outline, PipelineModule
from jaxpipe.optimizer import PlacedOptimizer
from jaxpipe.partition import Partition, partition
from jaxpipe.schedules import AUTO, Lockstep, Schedule, by_name, verify
from jaxpipe.stages import Remat, Stages, build_stages
from jaxpipe.storage import Layout
from jaxpipe.storage.parameters import parameter_layout
from jaxpipe.zero import Zero


@dataclasses.dataclass(frozen=True, eq=False)
class Settings:
    """What `jaxpipe.initialize` is given, resolved; see there."""

    model: PipelineModule
    mesh: Mesh
    optimizer: optax.GradientTransformation | None
    schedule: Schedule | Auto
    remat: Remat
    zero: Zero
    loss_scale: LossScale | None
    check_ids: bool
    fill: float | None
    compiler_options: Mapping[str, bool | int | str | None] | None
    layer_norms: bool = False

    @property
    def num_data(self) -> int:
        """Size of the `data` axis."""
        return axis_size(self.mesh, DATA)

    @property
    def in_turn(self) -> bool:
        """Whether actions meet, over `tensor` or `data`, on devices that do not order meetings."""
        meets = axis_size(self.mesh, TENSOR) > 1 or (self.num_data > 1 and self.zero.per == "use")
        return meets and self.mesh.devices.flat[0].platform == "cpu"


@dataclasses.dataclass(frozen=True, eq=False)
class Structure:
    """What is settled by the first batch's shapes and stays.

    Attributes:
      schedule: the training schedule.
      partition: which layers make up which stage.
      layout: where the parameters live at rest.
      transformation: from optax, or None.
    """

    schedule: Schedule
    partition: Partition
    layout: Layout
    transformation: optax.GradientTransformation | None

    @functools.cached_property
    def optimizer(self) -> PlacedOptimizer | None:
        """For the trainable parameters, or None; traced when it is asked for.

        Raises:
          OptimizerError: when it mixes whole arrays of different layers.
        """
        given = self.transformation
        return None if given is None else PlacedOptimizer(given, self.layout)


def settle(settings: Settings, outline: Outline, local: Outline) -> Structure:
    """Finds the schedule, if that is still to be done, cuts the model and lays it out.

    Args:
      settings: of the engine.
      outline: shapes on one microbatch of one data rank.
      local: the same on one device.

    Raises:
      PartitionError: the model cannot be cut into as many stages as the schedule has.
      ScheduleError: no schedule fits into memory.
    """
    model, mesh, wanted = settings.model, settings.mesh, settings.schedule
    costs = layer_costs(model, outline)

    def cut(placement: Sequence[int]) -> tuple[Partition, Layout]:
        found = partition(costs, len(placement), model.partition_method)
        rank_of = [placement[found.stage_of(i)] for i in range(len(model.layers))]
        layout = parameter_layout(
            model.layers, outline, rank_of, 1 + max(placement),
            num_tensor=axis_size(mesh, TENSOR),
            num_parts=settings.num_data if settings.zero.cuts_state else 1,
        )  # fmt: skip
        return found, layout.cut if settings.zero.cuts_parameters else layout

    def trace(placement: Sequence[int]) -> Stages:
        found, layout = cut(placement)
        stages = lambda: build_stages(
            model, local, found, placement, layout, remat=settings.remat, train=True,
            scaled=settings.loss_scale is not None,
        )  # fmt: skip
        return traced_on(mesh, stages)

    table = wanted.find(trace, mesh) if isinstance(wanted, Auto) else wanted
    found, layout = cut(table.placement)
    return Structure(table, found, layout, settings.optimizer)


def lockstep_on(mesh: Mesh, remat: Remat) -> Lockstep:
    """How the ranks of a mesh wait for each other.

    On CPU, XLA lets all ranks meet at each permute; elsewhere those that a link joins, and permutes
    can run beside work unless a choice of links encloses them. What recomputation saves of memory,
    a last stage that is fused would spend again.
    """
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return Lockstep("all" if on_cpu else "links", fuse=remat == "none", steady=not on_cpu)


def resolve(
    model: PipelineModule,
    mesh: Mesh,
    schedule: str | Schedule,
    num_microbatches: int | None,
    num_chunks: int | None,
    memory_limit: float | None,
    remat: Remat,
) -> Schedule | Auto:
    """The table that `jaxpipe.initialize` is asked for; its arguments, its errors."""
    check_mesh(mesh)
    num_ranks = axis_size(mesh, PIPE)
    if memory_limit is not None and schedule != AUTO:
        raise ScheduleError(
            f"got memory_limit={memory_limit}, but only schedule='auto' chooses by memory. Leave"
            " memory_limit out, or use 'auto'."
        )
    if isinstance(schedule, Schedule):
        _check_table(schedule, num_microbatches, num_chunks)
        table = schedule
    elif num_microbatches is None:
        raise ScheduleError(
            f"schedule={schedule!r} needs num_microbatches=...; at least the number of ranks,"
            f" {num_ranks}, keeps them busy."
        )
    elif schedule == AUTO:
        return Auto.on(
            num_ranks, num_microbatches, num_chunks=num_chunks, num_stages=model.num_stages,
            memory_limit=memory_limit, lockstep=lockstep_on(mesh, remat),
        )  # fmt: skip
    else:
        table = by_name(schedule, num_ranks, num_microbatches, num_chunks=num_chunks)
    _check_stages(model, table, num_ranks)
    return table


def _check_table(schedule: Schedule, num_microbatches: int | None, num_chunks: int | None) -> None:
    """A table of the user's own is right, and says the same as the other arguments."""
    verify(schedule)
    check_runnable(schedule)
    if num_microbatches not in (None, schedule.num_microbatches):
        raise ScheduleError(
            f"num_microbatches={num_microbatches}, but the schedule {schedule.name!r} is for"
            f" {schedule.num_microbatches}. Leave num_microbatches out, or make the schedule anew."
        )
    if num_chunks not in (None, schedule.num_chunks):
        raise ScheduleError(
            f"num_chunks={num_chunks}, but the schedule {schedule.name!r} has"
            f" {schedule.num_chunks}. Leave num_chunks out, or make the schedule anew."
        )


def _check_stages(model: PipelineModule, schedule: Schedule, num_ranks: int) -> None:
    if schedule.num_ranks != num_ranks:
        raise ScheduleError(
            f"the schedule {schedule.name!r} is for {schedule.num_ranks} ranks; the mesh's"
            f" {PIPE!r} axis has {num_ranks}. Make both equal."
        )
    if model.num_stages not in (None, schedule.num_stages):
        raise ScheduleError(
            f"the model asks for num_stages={model.num_stages}, but the schedule {schedule.name!r}"
            f" on {num_ranks} ranks has {schedule.num_stages} stages. Leave num_stages out, or"
            " choose a mesh or a schedule with as many."
        )
