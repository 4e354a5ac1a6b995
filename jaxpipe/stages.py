"""From layers to stages: each stage's functions and shapes, one code for stages that are alike."""

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax

from jaxpipe.backward import SCALE, StageCode, StagePlan
from jaxpipe.errors import LayerError
from jaxpipe.executor.actions import Station
from jaxpipe.layers import Layer
from jaxpipe.model import Outline, PipelineModule
from jaxpipe.partition import Partition
from jaxpipe.spec import cast_floats_spec, signature
from jaxpipe.storage import Layout
from jaxpipe.storage.parameters import leaves_of

PyTree = Any
Remat = str | int | Callable[..., bool]


@dataclasses.dataclass(frozen=True)
class Stages:
    """All stages of a model on their ranks.

    Attributes:
      stations: one for each different code.
      codes: for each stage the number of its station.
      first_layers: for each stage the index of its first layer.
    """

    stations: tuple[Station, ...]
    codes: tuple[int, ...]
    first_layers: tuple[int, ...]


def build_stages(
    model: PipelineModule,
    outline: Outline,
    partition: Partition,
    placement: Sequence[int],
    layout: Layout,
    *,
    remat: Remat = "none",
    train: bool,
    scaled: bool = False,
) -> Stages:
    """Plans every stage, and traces F and B where `train` is set.

    Args:
      model: the layers and the loss.
      outline: shapes on one microbatch of one data rank.
      partition: which layers make up which stage.
      placement: stage -> rank.
      layout: where the parameters live.
      remat: what B recomputes; see `jaxpipe.initialize`.
      train: whether layers are told that they train, and gradients will be asked for.
      scaled: whether the context holds a scale of the loss.
    """
    check_remat(remat)
    stations: dict[Hashable, Station] = {}
    codes = []
    for stage in range(partition.num_stages):
        builder = _Builder(model, outline, layout, remat, train, scaled)
        layers = [model.layers[i] for i in partition.stage(stage)]
        key, station = builder.build(layers, placement[stage])
        stations.setdefault(key, station)
        codes.append(list(stations).index(key))
    built = tuple(stations.values())
    if train:
        built = tuple(dataclasses.replace(s, code=StageCode(s.plan)) for s in built)
    return Stages(built, tuple(codes), tuple(partition.boundaries[:-1]))


def check_remat(remat: Remat) -> None:
    """Raises `LayerError` unless `remat` is one of the known choices."""
    known = remat in ("none", "full") or callable(remat)
    if not known and (isinstance(remat, bool) or not isinstance(remat, int) or remat < 1):
        raise LayerError(
            f"remat={remat!r}; expected 'none', 'full', a number of layers, or a policy of"
            " jax.checkpoint_policies."
        )


@dataclasses.dataclass(frozen=True)
class _Builder:
    model: PipelineModule
    outline: Outline
    layout: Layout
    remat: Remat
    train: bool
    scaled: bool

    def build(self, layers: Sequence[Layer], rank: int) -> tuple[Hashable, Station]:
        """The stage's plan at its place, and a key that alike stages share."""
        outline, model = self.outline, self.model
        owners = list(dict.fromkeys(layer.owner for layer in layers))
        indices = leaves_of(self.layout, outline.params)
        flat = [i for owner in owners for i in indices[owner]]
        homes = tuple(self.layout.homes[i][rank] for i in flat)
        params = [p for owner in owners for p in jax.tree.leaves(outline.params[owner])]
        weights = tuple(cast_floats_spec(params, model.compute_dtype))
        trainable = tuple(not self.layout.leaves[i].frozen for i in flat)
        is_first, is_last = layers[0].index == 0, layers[-1] is model.layers[-1]
        split = len(layers) - 1 if is_last else len(layers)
        positions = lambda part: tuple(
            k for k, i in enumerate(flat) if any(i in indices[layer.owner] for layer in part)
        )
        plan = StagePlan(
            body=self._run(layers, owners, range(split)),
            head=self._run(layers, owners, range(split, len(layers))) if is_last else None,
            loss=(lambda y, context: model.loss_terms(y, context["batch"])) if is_last else None,
            metrics=(lambda y, c: model.metric_terms(y, c["batch"])) if is_last else None,
            weights=weights,
            trainable=trainable,
            body_weights=positions(layers[:split]),
            head_weights=positions(layers[split:]),
            x=outline.inputs[layers[0].index],
            y=outline.outputs[layers[-1].index],
            context=_context_spec(outline, self.scaled),
            is_first=is_first,
            needs_dx=self._needs_dx(layers[0].index),
        )
        key = (
            tuple(layer.kind for layer in layers),
            tuple(owners.index(layer.owner) for layer in layers),
            signature(plan.x), is_first, is_last, plan.needs_dx, homes, trainable,
        )  # fmt: skip
        return key, Station(plan, homes)

    def _needs_dx(self, first_layer: int) -> bool:
        """Whether a layer before this one is trained, so that gradients must travel on."""
        indices = leaves_of(self.layout, self.outline.params)
        owners = {layer.owner for layer in self.model.layers[:first_layer]}
        return any(not self.layout.leaves[i].frozen for owner in owners for i in indices[owner])

    def _run(
        self, layers: Sequence[Layer], owners: Sequence[str], positions: range
    ) -> Callable[..., PyTree]:
        """`(weights, x, context) -> y` of some of the stage's layers, with recomputation."""
        trees = [jax.tree.structure(self.outline.params[owner]) for owner in owners]
        model, train = self.model, self.train

        def part(positions: Sequence[int]) -> Callable[..., PyTree]:
            def run(weights: Sequence[jax.Array], x: PyTree, context: Any) -> PyTree:
                leaves = iter(weights)
                params = {
                    owner: tree.unflatten([next(leaves) for _ in range(tree.num_leaves)])
                    for owner, tree in zip(owners, trees, strict=True)
                }
                for k in positions:
                    key = (
                        jax.random.fold_in(context["key"], context["layer"] + k) if train else None
                    )
                    batch = context["batch"]
                    x = model.apply_layer(layers[k], params[layers[k].owner], x, batch, key, train)
                return x

            return run

        if not train or self.remat == "none" or not len(positions):
            return part(positions)
        step = self.remat if isinstance(self.remat, int) else len(positions)
        policy = self.remat if callable(self.remat) else None
        starts = range(positions.start, positions.stop, step)
        # F and B never stand in one basic block, so there is nothing for XLA to merge wrongly.
        parts = [
            jax.checkpoint(
                part(range(a, min(a + step, positions.stop))), policy=policy, prevent_cse=False
            )
            for a in starts
        ]

        def run(weights: Sequence[jax.Array], x: PyTree, context: Any) -> PyTree:
            for p in parts:
                x = p(weights, x, context)
            return x

        return run


def _context_spec(outline: Outline, scaled: bool) -> dict[str, Any]:
    key = jax.eval_shape(lambda: jax.random.key(0))
    layer = jax.ShapeDtypeStruct((), "uint32")
    scale = {SCALE: jax.ShapeDtypeStruct((), "float32")} if scaled else {}
    return dict(batch=dict(outline.batch), key=key, layer=layer, **scale)
