"""Flax NNX modules as layers: split into a graph and its values at the border, merged inside."""

import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

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
    make: Callable[[jax.Array], nnx.Module],
    recipe: Hashable,
    ready: nnx.Module | None,
    forward_fn: Callable[..., Any] | None,
    spreads: bool,
) -> dict[str, Any]:
    """The NNX half of a `Layer`: all that the class says itself, and what it was given.

    Args:
      make: `key -> module`, called under `jax.eval_shape` here and for real at init.
      recipe: equal for equal `make`.
      ready: a module that was built already; its values are where init starts from.
      forward_fn: what to compute in place of the module's call, `(module, x) -> y`.
      spreads: whether tuples and dicts become arguments, as in `nnx.Sequential`.
    """
    module = ready if ready is not None else nnx.eval_shape(make, jax.random.key(0))
    graph, params, randomness, rest = nnx.split(module, nnx.Param, nnx.RngState, ...)
    type_name = type(module).__name__
    _refuse_state(type_name, rest)
    accepted = parameters_of(type(module).__call__) if forward_fn is None else frozenset()

    def init(key: jax.Array, x: PyTree, side: SideInputs) -> PyTree:
        del x, side
        return nnx.to_pure_dict(nnx.state(make(key), nnx.Param))

    def call(
        values: PyTree, x: PyTree, key: jax.Array | None, train: bool, given: Mapping[str, Any]
    ) -> PyTree:
        state = jax.tree.map(lambda leaf: leaf, params)
        nnx.replace_by_pure_dict(state, values)
        bound = nnx.merge(graph, state, _seeded(randomness, key))
        bound.train() if train else bound.eval()
        args, kwargs = spread(x) if spreads else ((x,), {})
        target: Any = bound if forward_fn is None else functools.partial(forward_fn, bound)
        return target(*args, **kwargs, **given, **mode_arguments(accepted, train))

    def apply(
        values: PyTree, x: PyTree, side: SideInputs, key: jax.Array | None, train: bool
    ) -> PyTree:
        return call(values, x, key, train, side)

    def decode(
        values: PyTree, x: PyTree, side: SideInputs, positions: jax.Array, cache: Cache | None
    ) -> PyTree:
        more = decoding_arguments(accepted, side, positions, cache)
        return call(values, x, None, False, {**side, **more})

    kind = ("nnx", hashable(graph), forward_fn, spreads)
    given = None if ready is None else nnx.to_pure_dict(params)
    said = said_by(module, forward_fn)
    return dict(
        type_name=type_name, kind=kind, recipe=recipe, make=init, apply=apply, decode=decode,
        given=given, **said,
    )  # fmt: skip


def _seeded(randomness: nnx.State, key: jax.Array | None) -> nnx.State:
    """Every stream of the module starts from the layer's key, whatever was drawn before."""
    key = jax.random.key(0) if key is None else key
    leaves, tree = jax.tree.flatten(randomness)
    fresh = [
        jax.random.fold_in(key, i)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else jnp.zeros(leaf.shape, leaf.dtype)
        for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(tree, fresh)


def _refuse_state(type_name: str, rest: nnx.State) -> None:
    for path, variable in nnx.to_flat_state(rest):
        raise LayerError(
            f"{type_name} keeps state: {'/'.join(map(str, path))} is a {type(variable).__name__};"
            " layers must be functions of their parameters (nnx.Param) and input. Use a layer"
            " without running state (LayerNorm or GroupNorm in place of BatchNorm)."
        )
