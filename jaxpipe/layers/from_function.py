"""Plain functions as layers."""

from collections.abc import Callable
from typing import Any

import jax

from jaxpipe.layers.call import mode_arguments, parameters_of, spread
from jaxpipe.layers.layer import PyTree, SideInputs, hashable
from jaxpipe.layers.spec import FunctionLayer


def adapt(
    layer: FunctionLayer,
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    forward_fn: Callable[..., Any] | None = None,
    spreads: bool = False,
) -> dict[str, Any]:
    """The plain half of a `Layer`: type_name, kind, make, apply and takes_cut."""
    kwargs = kwargs or {}
    fn = forward_fn or layer.apply
    accepted = parameters_of(fn)

    def init(key: jax.Array, x: PyTree, side: SideInputs) -> PyTree:
        return {} if layer.init is None else layer.init(key, x, **side)

    def apply(
        params: PyTree, x: PyTree, side: SideInputs, key: jax.Array | None, train: bool
    ) -> PyTree:
        given = {} if "key" not in accepted else {"key": key}
        leading, named = spread(x) if spreads else ((x,), {})
        leading = leading if layer.init is None else (params, *leading)
        modes = mode_arguments(accepted, train)
        return fn(*leading, *args, **named, **kwargs, **side, **given, **modes)

    settings = tuple((k, hashable(v)) for k, v in sorted(kwargs.items()))
    kind = ("function", fn, layer.init, tuple(map(hashable, args)), settings, spreads)
    type_name = getattr(layer.apply, "__name__", type(layer.apply).__name__).strip("<>")
    cuts = getattr(fn, "takes_cut", None if forward_fn else False)
    return dict(type_name=type_name, kind=kind, make=init, apply=apply, takes_cut=cuts)
