"""From layers to stages that decode: shapes, and where a stage's weights and caches are."""

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxpipe import tensor
from jaxpipe.cache import Cache
from jaxpipe.errors import BatchError, JaxpipeError, LayerError
from jaxpipe.layers import Layer
from jaxpipe.mesh import traced_on
from jaxpipe.model import Logical, PipelineModule
from jaxpipe.partition import Partition
from jaxpipe.spec import abstract, cast_floats_spec, describe
from jaxpipe.storage import Home, Layout
from jaxpipe.storage.parameters import leaves_of

PyTree = Any
Spec = jax.ShapeDtypeStruct


@dataclasses.dataclass(frozen=True, eq=False)
class Shapes:
    """The shapes of a model that decodes, on one device and one microbatch.

    Attributes:
      inputs: what goes into each layer, `[rows, 1, ...]`.
      logits: what comes out of the last, `[rows, 1, vocabulary]`; cut over `tensor`, perhaps.
      vocab_size: ids there are in all.
      caches: for each layer what it remembers of a microbatch.
      weights: {layer name: abstract parameters, in the dtype of the computation}, owners only.
      max_positions: how many positions the model knows, or None where there is no end.
    """

    inputs: tuple[PyTree, ...]
    logits: Spec
    vocab_size: int
    caches: tuple[Mapping[str, Spec], ...]
    weights: Logical
    max_positions: int | None


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """A stage at its place.

    Attributes:
      layers: its layers.
      owners: which layers own its weights, each once.
      homes: where its rank keeps each weight.
      weights: abstract weights, as `homes`.
      caches: for each layer {name of an array: the buffer that it is in}.
      x: abstract input, of one token.
      mixing: how many of its layers come before or are the model's last with a cache.
      ends_mixing: whether its last layer is that one.
      is_first: whether tokens go into it.
      is_last: whether logits come out of it.
    """

    layers: tuple[Layer, ...]
    owners: tuple[str, ...]
    homes: tuple[Home, ...]
    weights: tuple[Spec, ...]
    caches: tuple[Mapping[str, str], ...]
    x: PyTree
    mixing: int
    ends_mixing: bool
    is_first: bool
    is_last: bool

    def parameters(self, weights: Sequence[jax.Array], trees: Mapping[str, Any]) -> Logical:
        """{layer name: its parameters} of the flat weights."""
        left = iter(weights)
        return {
            owner: trees[owner].unflatten([next(left) for _ in range(trees[owner].num_leaves)])
            for owner in self.owners
        }


@dataclasses.dataclass(frozen=True, eq=False)
class Stages:
    """All stages of a model that decodes.

    Attributes:
      stages: one for each different code.
      codes: for each stage of the model the number of its code.
      buffers: {name of a cache's buffer: abstract array, `[rows, ...]`}: as many of each shape as
        the rank has that has most.
      trees: {layer name: the structure of its parameters}.
    """

    stages: tuple[Stage, ...]
    codes: tuple[int, ...]
    buffers: Mapping[str, Spec]
    trees: Mapping[str, Any]


def shapes_of(
    model: PipelineModule, layout: Layout, mesh: Mesh, rows: int, capacity: int
) -> Shapes:
    """Traces every layer on one token of `rows` sequences.

    Raises:
      BatchError: a layer reads fields of a batch, which text that is generated does not have.
      LayerError: a layer cannot take what the one before it gives, or the last gives no logits.
    """
    for layer in model.layers:
        if layer.batch_inputs:
            raise BatchError(
                f"layer {layer.name} reads {list(layer.batch_inputs)} of a batch, and there is"
                " none when text is generated. Build the model without (packed=False of"
                " jaxpipe.models): its parameters are the same."
            )
    local = traced_on(mesh, lambda: _trace(model, _weights(model, layout, True), rows, capacity))
    with tensor.unbound():
        whole = _trace(model, _weights(model, layout, False), rows, capacity)
    logits = whole.logits
    if not isinstance(logits, Spec) or logits.ndim != 3 or logits.shape[:2] != (rows, 1):
        raise LayerError(
            f"the last layer gives {describe(logits)}; expected logits [{rows}, 1, vocabulary], for"
            " text to be generated."
        )
    return dataclasses.replace(local, vocab_size=logits.shape[-1])


def _weights(model: PipelineModule, layout: Layout, cut: bool) -> Logical:
    """Abstract parameters: whole, or what a device has of them."""
    specs = [
        Spec(layout.cut_of(i).piece if cut else leaf.shape, leaf.dtype)
        for i, leaf in enumerate(layout.leaves)
    ]
    return cast_floats_spec(jax.tree.unflatten(layout.treedef, specs), model.compute_dtype)


def _trace(model: PipelineModule, weights: Logical, rows: int, capacity: int) -> Shapes:
    token: Any = Spec((rows, 1), jnp.int32)
    number: Any = Spec((), jnp.int32)
    index: Any = Spec((), jnp.uint32)
    lengths: Any = Spec((rows,), jnp.int32)
    x, inputs, caches = token, [], []
    for layer in model.layers:
        inputs.append(x)
        declared = {}
        if layer.init_cache is not None:
            declared = _declared(layer, cast_floats_spec(x, model.compute_dtype), capacity)
        caches.append(declared)
        stacked: Any = {name: Spec((1, *s.shape), s.dtype) for name, s in declared.items()}
        cache = Cache(stacked, token, index, number, lengths, number, capacity)
        x = _traced(model, layer, weights[layer.owner], x, cache)
    limits = [layer.max_positions for layer in model.layers if layer.max_positions is not None]
    return Shapes(tuple(inputs), x, 0, tuple(caches), weights, min(limits, default=None))


def _declared(layer: Layer, x: PyTree, capacity: int) -> dict[str, Spec]:
    try:
        return dict(layer.init_cache(x, capacity)) if layer.init_cache else {}
    except JaxpipeError as error:
        raise LayerError(f"layer {layer.name}: {error}") from None


def _traced(model: PipelineModule, layer: Layer, weights: PyTree, x: PyTree, cache: Any) -> PyTree:
    """What comes out of a layer, abstract; the cache must come out as it went in."""
    try:
        y, after = jax.eval_shape(
            lambda p, x, cache: model.decode_layer(layer, p, x, cache), weights, x, cache
        )
    except LayerError as error:
        raise LayerError(f"layer {layer.name}: {error}") from None
    except BatchError:
        raise
    except Exception as error:
        raise LayerError(
            f"layer {layer.name} cannot take one token after the other, {describe(x)}."
            f" {layer.type_name} said: {type(error).__name__}: {error}"
        ) from error
    if abstract(dict(after.arrays)) != abstract(dict(cache.arrays)):
        raise LayerError(
            f"layer {layer.name} gives back a cache of {describe(dict(after.arrays))}, its"
            f" init_cache said {describe(dict(cache.arrays))}, each of one microbatch. Change"
            " arrays with cache.append and cache.replace only."
        )
    return y


def build_stages(
    model: PipelineModule,
    shapes: Shapes,
    partition: Partition,
    placement: Sequence[int],
    layout: Layout,
) -> Stages:
    """Every stage at its place, and one code for stages that are alike."""
    indices = leaves_of(layout, shapes.weights)
    buffers: dict[str, Spec] = {}
    used: dict[tuple[int, Hashable], int] = {}  # (rank, shape and dtype) -> buffers of it
    last = max((i for i, specs in enumerate(shapes.caches) if specs), default=-1)
    found: dict[Hashable, Stage] = {}
    codes = []
    for number, rank in enumerate(placement):
        layers = tuple(model.layers[i] for i in partition.stage(number))
        owners = tuple(dict.fromkeys(layer.owner for layer in layers))
        homes = tuple(layout.homes[i][rank] for owner in owners for i in indices[owner])
        caches = []
        for layer in layers:
            own = {}
            for name, spec in shapes.caches[layer.index].items():
                kind = f"{spec.dtype}_{'x'.join(map(str, spec.shape))}"
                count = used[rank, kind] = used.get((rank, kind), -1) + 1
                own[name] = f"{kind}_{count}"
                buffers[own[name]] = spec
            caches.append(own)
        stage = Stage(
            layers, owners, homes,
            tuple(w for owner in owners for w in jax.tree.leaves(shapes.weights[owner])),
            tuple(caches), shapes.inputs[layers[0].index],
            sum(layer.index <= last for layer in layers), layers[-1].index == last,
            layers[0].index == 0, layers[-1] is model.layers[-1],
        )  # fmt: skip
        key = (
            tuple(layer.kind for layer in layers),
            tuple(owners.index(layer.owner) for layer in layers),
            tuple(tuple(own.items()) for own in caches),
            describe(stage.x), homes, stage.mixing, stage.ends_mixing,
            stage.is_first, stage.is_last,
        )  # fmt: skip
        found.setdefault(key, stage)
        codes.append(list(found).index(key))
    trees = {owner: jax.tree.structure(tree) for owner, tree in shapes.weights.items()}
    return Stages(tuple(found.values()), tuple(codes), dict(sorted(buffers.items())), trees)
