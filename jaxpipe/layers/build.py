"""From what a user wrote to the list of layers: sequentials opened, specs built, names given."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
from flax import nnx

from jaxpipe.errors import LayerError
from jaxpipe.layers import from_function, from_linen, from_nnx
from jaxpipe.layers.call import parameters_of
from jaxpipe.layers.layer import Identity, Layer, hashable
from jaxpipe.layers.spec import FunctionLayer, LayerSpec, TiedLayerSpec

LayerLike = LayerSpec | FunctionLayer | nn.Module | nnx.Module | Callable[..., Any]


class _Item(NamedTuple):
    """One layer as written, and whether it stood in a `Sequential`, which spreads tuples."""

    written: LayerLike
    spreads: bool


def build_layers(written: LayerLike | Sequence[LayerLike]) -> tuple[Layer, ...]:
    """Every layer of a model, in order.

    Args:
      written: `LayerSpec`s, linen or NNX modules, `FunctionLayer`s and plain functions, in any
        mixture; or one `nn.Sequential` or `nnx.Sequential`, which is a list of layers too.

    Raises:
      LayerError: for anything else, for names that repeat, and for layers that keep state.
    """
    items = list(_open(written if isinstance(written, Sequence) else [written], False))
    if not items:
        raise LayerError("a model needs at least one layer; got an empty list.")
    layers: list[Layer] = []
    owners: dict[str, str] = {}  # of each tie
    width = len(str(len(items) - 1)) if len(items) > 100 else 2
    for index, item in enumerate(items):
        parts = _adapt(index, item)
        settings: dict[str, Any] = {
            k: getattr(item.written, k, None) for k in ("name", "batch_inputs", "frozen")
        }
        if not isinstance(item.written, LayerSpec | FunctionLayer):
            settings = dict(name=None, batch_inputs=(), frozen=False)
        name = settings["name"] or f"{index:0{width}d}_{parts['type_name']}"
        _check_name(name, [layer.name for layer in layers])
        tie = item.written.key if isinstance(item.written, TiedLayerSpec) else None
        owner = name if tie is None else owners.setdefault(tie, name)
        frozen = settings["frozen"]
        kind = (parts.pop("kind"), settings["batch_inputs"], frozen)
        layers.append(
            Layer(
                index=index, name=name, owner=owner, kind=kind, recipe=parts.pop("recipe", None),
                frozen=frozen, batch_inputs=tuple(settings["batch_inputs"]), **parts,
            )
        )  # fmt: skip
    return tuple(_share_frozen(layers))


def _open(written: Iterable[Any], spreads: bool) -> Iterable[_Item]:
    for layer in written:
        if isinstance(layer, nn.Sequential | nnx.Sequential):
            yield from _open(layer.layers, True)
        else:
            yield _Item(layer, spreads)


def _adapt(index: int, item: _Item) -> dict[str, Any]:
    written, spreads = item
    forward_fn = getattr(written, "forward_fn", None) if isinstance(written, LayerSpec) else None
    try:
        if isinstance(written, LayerSpec):
            return _adapt_spec(written, forward_fn, spreads)
        if isinstance(written, nn.Module):
            return from_linen.adapt(written, None, spreads)
        if isinstance(written, nnx.Module):
            ready = written
            return from_nnx.adapt(lambda key: ready, Identity(ready), ready, None, spreads)
        if isinstance(written, FunctionLayer):
            return from_function.adapt(written, spreads=spreads)
        if callable(written) and not isinstance(written, type):
            return from_function.adapt(FunctionLayer(written), spreads=spreads)
    except LayerError as error:
        raise LayerError(f"layer {index}: {error}") from None
    raise LayerError(
        f"layer {index} is {written!r}; expected a LayerSpec, a Flax module, a FunctionLayer or a"
        " function. A class is not built yet: write LayerSpec(Class, ...)."
    )


def _adapt_spec(
    spec: LayerSpec, forward_fn: Callable[..., Any] | None, spreads: bool
) -> dict[str, Any]:
    made, args, kwargs = spec.typename, spec.args, spec.kwargs
    if isinstance(made, type) and issubclass(made, nn.Module):
        return from_linen.adapt(made(*args, **kwargs), forward_fn, spreads)
    if isinstance(made, type) and issubclass(made, nnx.Module):
        wants_rngs = "rngs" in parameters_of(made.__init__)

        def make(key: Any) -> nnx.Module:
            rngs = {"rngs": nnx.Rngs(key)} if wants_rngs else {}
            return made(*args, **kwargs, **rngs)

        values = [(name, hashable(value)) for name, value in sorted(kwargs.items())]
        recipe = (made, tuple(map(hashable, args)), tuple(values))
        return from_nnx.adapt(make, recipe, None, forward_fn, spreads)
    if isinstance(made, FunctionLayer):
        return from_function.adapt(made, args, kwargs, forward_fn)
    if isinstance(made, type):
        raise LayerError(
            f"{made.__name__} is a class, but neither a linen nor an NNX module. Give a function,"
            " or a FunctionLayer of an init and an apply function."
        )
    return from_function.adapt(FunctionLayer(made), args, kwargs, forward_fn)


def _check_name(name: str, taken: Sequence[str]) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_.\-]+", name):
        raise LayerError(
            f"layer name {name!r}: use letters, digits, '_', '.' and '-' only; names become keys"
            " of checkpoints."
        )
    if name in taken:
        raise LayerError(
            f"two layers are named {name!r}; names must differ. To share parameters on purpose,"
            " use TiedLayerSpec."
        )


def _share_frozen(layers: Sequence[Layer]) -> Iterable[Layer]:
    """A tie is frozen as its owner is: one parameter cannot be both."""
    by_name = {layer.name: layer for layer in layers}
    for layer in layers:
        frozen = by_name[layer.owner].frozen
        yield layer if layer.frozen == frozen else dataclasses.replace(layer, frozen=frozen)
