"""Shapes and dtypes without values: abstract trees, their bytes, and how messages show them."""

import math
from collections.abc import Hashable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp

PyTree = Any


def abstract(tree: PyTree) -> PyTree:
    """The same tree with a `jax.ShapeDtypeStruct` for each array."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), tree)


def signature(tree: PyTree) -> Hashable:
    """Equal for trees of one structure whose arrays have the same shapes and dtypes.

    >>> signature([jnp.zeros(2)]) == signature([jnp.ones(2)]) != signature([jnp.zeros(3)])
    True
    """
    leaves, treedef = jax.tree.flatten(abstract(tree))
    return treedef, tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)


def zeros(tree: PyTree) -> PyTree:
    """Zeros of these shapes and dtypes."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree)


def num_bytes(tree: PyTree) -> int:
    """Bytes of all arrays of the tree."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def num_elements(tree: PyTree) -> int:
    """Elements of all arrays of the tree."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def is_float(x: Any) -> bool:
    """Whether the array takes a gradient."""
    return jnp.issubdtype(x.dtype, jnp.floating)


def is_traced(x: Any) -> bool:
    """Whether the array is abstract, inside a transformation."""
    return isinstance(x, jax.core.Tracer)


def is_key(x: Any) -> bool:
    """Whether the array is a typed PRNG key."""
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def cast_floats(tree: PyTree, dtype: Any) -> PyTree:
    """Every floating array of the tree in `dtype`; the tree itself where `dtype` is None."""
    if dtype is None:
        return tree
    return jax.tree.map(lambda x: x.astype(dtype) if is_float(x) else x, tree)


def cast_floats_spec(tree: PyTree, dtype: Any) -> PyTree:
    """`cast_floats` for abstract trees."""
    return jax.eval_shape(lambda tree: cast_floats(tree, dtype), tree)


def describe(tree: PyTree) -> str:
    """Shapes and dtypes in one line.

    >>> describe({"x": jax.ShapeDtypeStruct((2, 8), jnp.float32)})
    "{'x': float32[2,8]}"
    """
    shown = jax.tree.map(lambda x: _Shown(f"{x.dtype}[{','.join(map(str, x.shape))}]"), tree)
    return repr(shown)


class _Shown:
    def __init__(self, text: str):
        self.text = text

    def __repr__(self) -> str:
        return self.text
