"""Calling a module or a function with just the arguments that its signature has."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any


def parameters_of(fn: Callable[..., Any]) -> frozenset[str]:
    """The names a call of `fn` accepts by keyword; empty where Python cannot tell."""
    try:
        return frozenset(inspect.signature(fn).parameters)
    except (TypeError, ValueError):
        return frozenset()


def mode_arguments(names: frozenset[str], train: bool) -> dict[str, bool]:
    """`train=` or `deterministic=`, for calls that want to know."""
    modes = {"train": train, "training": train, "deterministic": not train}
    return {name: value for name, value in modes.items() if name in names}


def decoding_arguments(
    names: frozenset[str], side: Mapping[str, Any], positions: Any, cache: Any
) -> dict[str, Any]:
    """`positions=` and `cache=`, for calls that want them; a side input of that name goes first."""
    given = {"positions": positions} | ({} if cache is None else {"cache": cache})
    return {name: x for name, x in given.items() if name in names and name not in side}


def said_by(layer: Any, forward_fn: Callable[..., Any] | None) -> dict[str, Any]:
    """What a layer's class, or another function in its place, says beside what it computes."""
    said = layer if forward_fn is None else forward_fn
    return dict(
        takes_cut=getattr(said, "takes_cut", False if forward_fn is None else None),
        init_cache=getattr(said, "init_cache", None),
        max_positions=getattr(said, "max_positions", None),
    )


def spread(x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What `Sequential` of both Flax libraries does with a tuple or a dict between its layers."""
    if isinstance(x, tuple):
        return x, {}
    return ((), x) if isinstance(x, dict) else ((x,), {})
