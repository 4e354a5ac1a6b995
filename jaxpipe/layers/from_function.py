"""Plain functions as layers."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxpipe.cache import Cache
from jaxpipe.layers.call import (
    decoding_arguments,
    mode_arguments,
    parameters_of,
    said_by,
    spread,
)
from jaxpipe.layers.layer import PyTree, SideInputs, hashable
from jaxpipe.layers.spec import FunctionLayer


def adapt(
    layer: FunctionLayer,
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    forward_fn: Callable[..., Any] | None = None,
    spreads: bool = False,
) -> dict[str, Any]:
    """The plain half of a `Layer`: all that the functions say themselves."""
    kwargs = kwargs or {}
    fn = forward_fn or layer.apply
    accepted = parameters_of(fn)

    def init(key: jax.Array, x: PyTree, side: SideInputs) -> PyTree:
        return {} if layer.init is None else layer.init(key, x, **side)

    def call(
        params: PyTree, x: PyTree, key: jax.Array | None, train: bool, more: Mapping[str, Any]
    ) -> PyTree:
        given = {} if "key" not in accepted else {"key": key}
        leading, named = spread(x) if spreads else ((x,), {})
        leading = leading if layer.init is None else (params, *leading)
        modes = mode_arguments(accepted, train)
        return fn(*leading, *args, **named, **kwargs, **more, **given, **modes)

    def apply(
        params: PyTree, x: PyTree, side: SideInputs, key: jax.Array | None, train: bool
    ) -> PyTree:
        return call(params, x, key, train, side)

    def decode(
        params: PyTree, x: PyTree, side: SideInputs, positions: jax.Array, cache: Cache | None
    ) -> PyTree:
        more = decoding_arguments(accepted, side, positions, cache)
        return call(params, x, None, False, {**side, **more})

    settings = tuple((k, hashable(v)) for k, v in sorted(kwargs.items()))
    kind = ("function", fn, layer.init, tuple(map(hashable, args)), settings, spreads)
    type_name = getattr(layer.apply, "__name__", type(layer.apply).__name__).strip("<>")
    said = said_by(fn, forward_fn) | ({} if forward_fn else dict(init_cache=layer.init_cache))
    return dict(type_name=type_name, kind=kind, make=init, apply=apply, decode=decode, **said)
