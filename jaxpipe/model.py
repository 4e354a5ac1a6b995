"""A model as a list of layers and a loss, with its plain functions: no pipeline, no mesh."""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxpipe.batch import check_fields, split_microbatches
from jaxpipe.cache import Cache, decoding
from jaxpipe.errors import JaxpipeError, LayerError, LossError
from jaxpipe.layers import Layer, LayerLike, build_layers
from jaxpipe.layers.boxes import tensor_dims, unboxed
from jaxpipe.mesh import TENSOR, axis_size, traced_on
from jaxpipe.spec import abstract, cast_floats, cast_floats_spec, describe, signature, zeros

PyTree = Any
Batch = Mapping[str, PyTree]
Logical = dict[str, PyTree]  # {layer name: its parameters}
LossFn = Callable[[PyTree, Batch], Any]


@dataclasses.dataclass(frozen=True)
class Outline:
    """The shapes of a model on one microbatch, layer by layer.

    Attributes:
      inputs: what goes into each layer (trees of `jax.ShapeDtypeStruct`).
      outputs: what comes out.
      params: {layer name: abstract parameters}, owners only.
      batch: one microbatch.
      tensor_dims: {layer name: for each leaf the dim that is cut over `tensor`, or None}.
    """

    inputs: tuple[PyTree, ...]
    outputs: tuple[PyTree, ...]
    params: Logical
    batch: Batch
    tensor_dims: Mapping[str, tuple[int | None, ...]]


class PipelineModule:
    """A model written as a list of layers, to be cut into pipeline stages.

    Args:
      layers: `LayerSpec`s, Flax modules and functions, or one `nn.Sequential`/`nnx.Sequential`.
        The first layer gets `batch["inputs"]`; any pytree of arrays may pass between layers.
      loss_fn: `(outputs, batch) -> mean` or `-> (sum, weight)`, scalars. Outputs come in float32.
        A sum is divided once, by the weight of the whole batch; the weight gets no gradient.
      metric_fns: {name: function like `loss_fn`}: what an evaluation tells besides the loss.
      num_stages: stages in all; the number of pipeline ranks by default.
      partition_method: "uniform", "parameters", "flops", "type:REGEX" or a list of boundaries;
        see `jaxpipe.partition`.
      id_ranges: {batch field: (low, high)}: integers outside `low <= id < high` are refused,
        because JAX would clamp them in silence.
      compute_dtype: layers run in this dtype, parameters stay in their own; None leaves both.

    Raises:
      LayerError: when a layer cannot be used.
      LossError: a metric is named "loss" or "weight".
    """

    def __init__(
        self,
        layers: LayerLike | Sequence[LayerLike],
        loss_fn: LossFn,
        *,
        metric_fns: Mapping[str, LossFn] | None = None,
        num_stages: int | None = None,
        partition_method: str | Sequence[int] = "parameters",
        id_ranges: Mapping[str, tuple[int, int]] | None = None,
        compute_dtype: Any = None,
    ):
        self.layers: tuple[Layer, ...] = build_layers(layers)
        self.loss_fn = loss_fn
        self.metric_fns = dict(metric_fns or {})
        if taken := {"loss", "weight"} & self.metric_fns.keys():
            raise LossError(
                f"metric_fns has {min(taken)!r}, which the loss has; name it otherwise."
            )
        self.num_stages = num_stages
        self.partition_method = partition_method
        self.id_ranges = dict(id_ranges or {})
        self.compute_dtype = compute_dtype

    def __repr__(self) -> str:
        return (
            f"PipelineModule({len(self.layers)} layers: {', '.join(x.name for x in self.layers)})"
        )

    def init(self, key: jax.Array, batch: Batch) -> Logical:
        """Fresh parameters, {layer name: tree}; a layer's depend on (key, its index) only.

        Args:
          key: a typed PRNG key, `jax.random.key(seed)`.
          batch: an example; only shapes and dtypes are read.
        """
        outline, made, makers = self.outline(batch), {}, {}
        for layer in self.layers:
            if not layer.is_tied:
                new = jax.jit(functools.partial(self.init_layer, layer, outline))
                make = makers.setdefault(self.init_kind(layer, outline), new)
                made[layer.name] = make(jax.random.fold_in(key, layer.index))
        return made

    def apply(
        self, params: Logical, batch: Batch, *, key: jax.Array | None = None, train: bool = False
    ) -> PyTree:
        """The outputs of the last layer, for the whole batch at once."""
        x = batch["inputs"]
        for layer in self.layers:
            layer_key = None if key is None else jax.random.fold_in(key, layer.index)
            x = self.apply_layer(layer, params[layer.owner], x, batch, layer_key, train)
        return x

    def loss(
        self,
        params: Logical,
        batch: Batch,
        *,
        key: jax.Array | None = None,
        train: bool = False,
        num_microbatches: int = 1,
    ) -> jax.Array:
        """The loss without a pipeline, float32 scalar; differentiable.

        Args:
          params: {layer name: tree}, as `init` gives them.
          batch: {field: arrays with the batch first}.
          key: for dropout; microbatch `g` of the batch uses `fold_in(key, g)`.
          train: whether layers are told that they train.
          num_microbatches: how the batch is cut; it matters to dropout and to memory only.
        """
        pieces = split_microbatches(batch, num_microbatches)

        def one(total: tuple[jax.Array, jax.Array], piece: tuple[jax.Array, Batch]) -> Any:
            index, microbatch = piece
            piece_key = None if key is None else jax.random.fold_in(key, index)
            outputs = self.apply(params, microbatch, key=piece_key, train=train)
            loss, weight = self.loss_terms(outputs, microbatch)
            return (total[0] + loss, total[1] + weight), None

        zero = (jnp.zeros(()), jnp.zeros(()))
        (loss, weight), _ = jax.lax.scan(one, zero, (jnp.arange(num_microbatches), pieces))
        return loss / weight

    def init_kind(self, layer: Layer, outline: Outline) -> Hashable:
        """Equal for layers whose fresh parameters are the same function of their keys."""
        takes = outline.inputs[layer.index], layer.side_inputs(outline.batch)
        return layer.kind, layer.recipe, signature(takes)

    def init_layer(self, layer: Layer, outline: Outline, key: jax.Array) -> PyTree:
        """Fresh parameters of one layer from its own key."""
        x, side = zeros((outline.inputs[layer.index], layer.side_inputs(outline.batch)))
        return layer.init(key, cast_floats(x, self.compute_dtype), side)

    def apply_layer(
        self,
        layer: Layer,
        params: PyTree,
        x: PyTree,
        batch: Batch,
        key: jax.Array | None,
        train: bool,
    ) -> PyTree:
        """One layer in the model's compute dtype."""
        with jax.named_scope(layer.name):  # shows in profiles and in messages
            x, params = cast_floats((x, params), self.compute_dtype)
            return layer.apply(params, x, layer.side_inputs(batch), key, train)

    def decode_layer(
        self, layer: Layer, params: PyTree, x: PyTree, cache: Cache
    ) -> tuple[PyTree, Cache]:
        """One layer of tokens that follow others, in the model's compute dtype."""
        with jax.named_scope(layer.name), decoding():
            x, params = cast_floats((x, params), self.compute_dtype)
            if layer.init_cache is None:
                return layer.decode(params, x, {}, cache.positions, None), cache
            return layer.decode(params, x, {}, cache.positions, cache)

    def loss_terms(self, outputs: PyTree, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """The loss as a float32 (sum, weight); a mean counts as a sum of weight 1.

        Raises:
          LossError: when the loss function gives anything but scalars.
        """
        return _terms(self.loss_fn, cast_floats(outputs, jnp.float32), batch)

    def metric_terms(self, outputs: PyTree, batch: Batch) -> dict[str, tuple[jax.Array, jax.Array]]:
        """The loss and each metric as float32 (sum, weight).

        Raises:
          LossError: when one of the functions gives anything but scalars.
        """
        outputs = cast_floats(outputs, jnp.float32)
        functions = {"loss": self.loss_fn} | self.metric_fns
        return {name: _terms(fn, outputs, batch) for name, fn in functions.items()}

    def outline(self, batch: Batch) -> Outline:
        """The shapes of every layer on this (micro)batch, nothing computed.

        Raises:
          BatchError: when the batch lacks a field that the model reads.
          LayerError: when a layer cannot take what the one before it gives.
          LossError: when the loss is not scalar.
        """
        batch = abstract(dict(batch))
        check_fields(batch, {x.name: x.batch_inputs for x in self.layers})
        x, params, dims = batch["inputs"], {}, {}
        inputs, outputs = [], []
        shape = _Shapes(self, batch)
        for layer in self.layers:
            inputs.append(x)
            boxed = shape(layer, x, "init", layer.make, layer.side_inputs(batch))
            fresh = unboxed(boxed)
            dims.setdefault(layer.owner, tensor_dims(boxed))
            known = params.setdefault(layer.owner, fresh)
            if abstract(known) != abstract(fresh):
                raise LayerError(
                    f"{layer.name} is tied to {layer.owner}, but its parameters are"
                    f" {describe(fresh)} and not {describe(known)}; ties need equal shapes."
                )
            run = functools.partial(self.apply_layer, layer, train=False)
            x = shape(layer, x, "apply", run, known)
            outputs.append(x)
        jax.eval_shape(self.metric_terms, x, batch)
        return Outline(tuple(inputs), tuple(outputs), params, batch, dims)

    def outline_on(self, mesh: Mesh, outline: Outline) -> Outline:
        """The shapes that a device of a mesh sees: weights and activations may be cut.

        Raises:
          LayerError: a layer that is not made for it gets a cut input, or a dim does not divide.
          LossError: the same for the loss.
        """
        num_tensor = axis_size(mesh, TENSOR)
        if num_tensor == 1:
            return outline
        params = {
            name: _cut_params(name, tree, outline.tensor_dims[name], num_tensor)
            for name, tree in outline.params.items()
        }

        def trace() -> tuple[list[PyTree], list[PyTree]]:
            x, inputs, outputs = outline.batch["inputs"], [], []
            shape = _Shapes(self, outline.batch)
            for layer, whole in zip(self.layers, outline.inputs, strict=True):
                inputs.append(x)
                _check_cut(f"layer {layer.name}", layer.takes_cut, x, whole, LayerError)
                run = functools.partial(self.apply_layer, layer, train=False)
                x = shape(layer, x, "apply", run, params[layer.owner])
                outputs.append(x)
            for fn in (self.loss_fn, *self.metric_fns.values()):
                name = getattr(fn, "__name__", "loss_fn")
                takes_cut = getattr(fn, "takes_cut", False)
                _check_cut(f"the loss {name}", takes_cut, x, outline.outputs[-1], LossError)
            return inputs, outputs

        inputs, outputs = traced_on(mesh, trace)
        return dataclasses.replace(
            outline, inputs=tuple(inputs), outputs=tuple(outputs), params=params
        )


class _Shapes:
    """`jax.eval_shape` of layers' init and apply; layers that are alike are traced once."""

    def __init__(self, model: PipelineModule, batch: Batch):
        self._model, self._batch = model, batch
        self._known: dict[Hashable, PyTree] = {}

    def __call__(
        self, layer: Layer, x: PyTree, what: str, fn: Callable[..., Any], more: PyTree
    ) -> PyTree:
        """Of `fn`, which is what the layer does, of `x` and `more`; names the layer in errors."""
        key = what, layer.kind, signature((x, more))
        if key not in self._known:
            try:
                self._known[key] = self._trace(x, what, fn, more)
            except LayerError as error:
                raise LayerError(f"layer {layer.name}: {error}") from None
            except Exception as error:
                layers = self._model.layers
                before = layers[layer.index - 1].name if layer.index else "batch['inputs']"
                raise LayerError(
                    f"layer {layer.name} cannot take what {before} gives, {describe(x)}. Change"
                    f" either so that they fit. {layer.type_name} said: {type(error).__name__}:"
                    f" {error}"
                ) from error
        return self._known[key]

    def _trace(self, x: PyTree, what: str, fn: Callable[..., Any], more: PyTree) -> PyTree:
        if what == "init":
            key = jax.eval_shape(lambda: jax.random.key(0))
            return jax.eval_shape(fn, key, cast_floats_spec(x, self._model.compute_dtype), more)
        run = lambda p, x, b: fn(p, x, b, jax.random.key(0))
        return jax.eval_shape(run, more, x, self._batch)


def _terms(fn: LossFn, outputs: PyTree, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """What a loss function gives, as a float32 (sum, weight)."""
    result = fn(outputs, batch)
    terms = result if isinstance(result, tuple) and len(result) == 2 else (result, 1.0)
    try:
        total, weight = (jnp.asarray(term, jnp.float32) for term in terms)
    except TypeError:
        total = weight = jnp.zeros((0,))
    if total.shape or weight.shape:
        got = describe(abstract(result)) if jax.tree.leaves(result) else repr(result)
        raise LossError(
            f"{getattr(fn, '__name__', 'loss_fn')} gave {got}; expected a scalar"
            " mean, or a scalar sum and a scalar weight. Reduce over the batch: .mean(), or"
            " (x * weights).sum(), weights.sum()."
        )
    return total, jax.lax.stop_gradient(weight)


def _cut_params(name: str, tree: PyTree, dims: Sequence[int | None], num_tensor: int) -> PyTree:
    """What one tensor rank has of a layer's abstract parameters."""
    leaves = []
    for (path, leaf), dim in zip(jax.tree_util.tree_leaves_with_path(tree), dims, strict=True):
        shape = list(leaf.shape)
        if dim is not None:
            if shape[dim] % num_tensor:
                where = jax.tree_util.keystr(path, simple=True, separator="/")
                raise LayerError(
                    f"layer {name}: {where} of shape {leaf.shape} is to be cut along dim {dim}, and"
                    f" {TENSOR}={num_tensor} does not divide it. Use another size, or a mesh with"
                    " another number of tensor ranks."
                )
            shape[dim] //= num_tensor
        leaves.append(jax.ShapeDtypeStruct(tuple(shape), leaf.dtype))
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def _check_cut(
    who: str, takes_cut: bool | None, got: PyTree, whole: PyTree, error: type[JaxpipeError]
) -> None:
    """What is cut goes to those who say that they take it, and nothing else does."""
    is_cut = abstract(got) != abstract(whole)
    if takes_cut is None or is_cut == takes_cut:
        return
    if is_cut:
        raise error(
            f"{who} gets {describe(got)} on each tensor rank, a piece of {describe(whole)}, and"
            " does not say that it can: set takes_cut = True on what is made for that, or gather"
            " before it (jaxpipe.nn has layers and a loss for either)."
        )
    raise error(
        f"{who} takes what is cut over {TENSOR!r} (its takes_cut says so), and gets all of"
        f" {describe(whole)} on each rank. Use one for whole arrays (sequence_parallel=False, or"
        " a loss of jaxpipe.losses), or let what is before it give pieces."
    )
