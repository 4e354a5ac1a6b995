"""Flax linen modules as layers."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax

from jaxpipe.cache import Cache
from jaxpipe.errors import LayerError
from jaxpipe.layers.call import (
    decoding_arguments,
    mode_arguments,
    parameters_of,
    said_by,
    spread,
)
from jaxpipe.layers.layer import PyTree, SideInputs, hashable


def adapt(
    module: nn.Module, forward_fn: Callable[..., Any] | None, spreads: bool
) -> dict[str, Any]:
    """The linen half of a `Layer`: all that the class says itself."""
    module = module.clone(name=None, parent=None)
    accepted = parameters_of(type(module).__call__) if forward_fn is None else frozenset()
    # What the module was built with stays: linen refuses to be told twice.
    accepted = frozenset(name for name in accepted if getattr(module, name, None) is None)
    type_name = type(module).__name__

    def call(
        bound: Any, x: PyTree, side: SideInputs, train: bool, more: Mapping[str, Any]
    ) -> PyTree:
        args, kwargs = spread(x) if spreads else ((x,), {})
        target = bound if forward_fn is None else functools.partial(forward_fn, bound)
        return target(*args, **kwargs, **side, **mode_arguments(accepted, train), **more)

    def init(key: jax.Array, x: PyTree, side: SideInputs) -> PyTree:
        params_key, dropout_key = jax.random.split(key)
        keys: dict[str, Any] = {"params": params_key, "dropout": dropout_key}
        variables = module.init(keys, x, side, False, {}, method=call)
        _refuse_state(type_name, variables)
        return dict(variables["params"]) if "params" in variables else {}

    def apply(
        params: PyTree, x: PyTree, side: SideInputs, key: jax.Array | None, train: bool
    ) -> PyTree:
        rngs = None if key is None else {"dropout": key}
        return module.apply({"params": params}, x, side, train, {}, rngs=rngs, method=call)

    def decode(
        params: PyTree, x: PyTree, side: SideInputs, positions: jax.Array, cache: Cache | None
    ) -> PyTree:
        more = decoding_arguments(accepted, side, positions, cache)
        return module.apply({"params": params}, x, side, False, more, method=call)

    kind = ("linen", hashable(module), forward_fn, spreads)
    said = said_by(module, forward_fn)
    return dict(type_name=type_name, kind=kind, make=init, apply=apply, decode=decode, **said)


def _refuse_state(type_name: str, variables: Mapping[str, Any]) -> None:
    for collection in variables:
        if collection != "params":
            leaves = ", ".join(
                jax.tree_util.keystr(path, simple=True, separator="/")
                for path, _ in jax.tree_util.tree_leaves_with_path(variables[collection])
            )
            raise LayerError(
                f"{type_name} keeps state in the collection {collection!r} ({leaves}); layers must"
                " be functions of their parameters and input. Use a layer without running state"
                " (LayerNorm or GroupNorm in place of BatchNorm)."
            )
