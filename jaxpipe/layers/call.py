"""Calling a module or a function with just the arguments that its signature has."""

import inspect
from collections.abc import Callable
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


def spread(x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What `Sequential` of both Flax libraries does with a tuple or a dict between its layers."""
    if isinstance(x, tuple):
        return x, {}
    return ((), x) if isinstance(x, dict) else ((x,), {})
