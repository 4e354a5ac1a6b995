"""Flax's boxes around parameters: they say which dim is cut over the `tensor` axis.

A box is what `flax.linen.with_partitioning(init, (None, "tensor"))` puts around an array. Other
axis names in it mean nothing here.
"""

from typing import Any

import jax
from flax.core import meta

from jaxpipe.errors import LayerError
from jaxpipe.mesh import TENSOR

PyTree = Any


def unboxed(tree: PyTree) -> PyTree:
    """The tree without boxes.

    Flax's own `unbox` asks for a sharding where a mesh is set, which a manual region refuses.
    """
    open_box = lambda x: x.value if isinstance(x, meta.Partitioned) else x.unbox()
    strip = lambda x: unboxed(open_box(x)) if _is_box(x) else x
    return jax.tree.map(strip, tree, is_leaf=_is_box)


def tensor_dims(tree: PyTree) -> tuple[int | None, ...]:
    """For each leaf the dim that is cut over `tensor`, or None.

    Raises:
      LayerError: a leaf is cut along two dims.
    """
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_box):
        names = leaf.names if isinstance(leaf, meta.Partitioned) else ()
        dims = [dim for dim, name in enumerate(names) if TENSOR in _axes(name)]
        if len(dims) > 1 or any(_axes(names[dim]) != (TENSOR,) for dim in dims):
            where = jax.tree_util.keystr(path, simple=True, separator="/")
            raise LayerError(
                f"{where} is partitioned as {names}; expected one dim at most that is cut over"
                f" {TENSOR!r}, and over that alone."
            )
        found.append(dims[0] if dims else None)
    return tuple(found)


def _axes(name: Any) -> tuple[Any, ...]:
    return name if isinstance(name, tuple) else (name,)


def _is_box(x: Any) -> bool:
    return isinstance(x, meta.AxisMetadata)
