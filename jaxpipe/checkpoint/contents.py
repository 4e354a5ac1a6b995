"""What a state holds, by logical names: neither stages nor ranks nor slots occur in them.

Leaves of layers that are alike (names that differ by a number only, leaves of the same names,
shapes and dtypes) make up one array, `[layers, ...]` in the model's order. So a checkpoint's arrays
depend on the model and the optimizer alone.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpipe.checkpoint.names import dotted, in_order, stem, word
from jaxpipe.errors import CheckpointError
from jaxpipe.storage import Layout, Placed

PyTree = Any

_LONGEST = 240  # characters; file systems have 255 bytes


@dataclasses.dataclass(frozen=True, eq=False)
class LogicalTree:
    """Parameters, or the like, that are not on devices; to be saved only.

    Attributes:
      layers: {layer name: tree}; its leaves have a shape and a dtype, and become arrays by
        `numpy.asarray`, one after the other.
    """

    layers: Mapping[str, Any]


class Member(NamedTuple):
    """A leaf of a state.

    Attributes:
      key: its own name, which says its layer.
      node: which of the state's nodes it belongs to.
      leaf: its index in that node's layout, or None where the node is an array itself.
      layer: the layer it belongs to, if any.
    """

    key: str
    node: int
    leaf: int | None
    layer: str | None


@dataclasses.dataclass(frozen=True)
class Array:
    """An array of a checkpoint.

    Attributes:
      name: its name, with the layers' stem in place of a layer.
      shape: of one member.
      dtype: of all of them.
      members: one for each layer, in order; a single one where there is no layer.
      layered: whether the first dim counts layers.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    members: tuple[Member, ...]
    layered: bool

    @property
    def num_bytes(self) -> int:
        """Bytes of all elements."""
        return math.prod(self.whole_shape) * self.dtype.itemsize

    @property
    def whole_shape(self) -> tuple[int, ...]:
        """The shape of the array as it is written."""
        return (len(self.members), *self.shape) if self.layered else self.shape


@dataclasses.dataclass(frozen=True)
class Contents:
    """A state, taken apart.

    Attributes:
      nodes: its placed trees and other arrays.
      treedef: how these make up the state.
      arrays: what a checkpoint has of it.
    """

    nodes: tuple[Any, ...]
    treedef: Any
    arrays: tuple[Array, ...]

    def members(self) -> dict[str, tuple[Array, int]]:
        """{key of a member: its array, and its place there}."""
        return {
            member.key: (array, i)
            for array in self.arrays
            for i, member in enumerate(array.members)
        }


class _Leaf(NamedTuple):
    """A member before its array is known: `words` with the layer at `place`, if it has one."""

    words: tuple[str, ...]
    place: int | None
    shape: tuple[int, ...]
    dtype: np.dtype
    node: int
    leaf: int | None
    layer: str | None


def contents_of(state: PyTree) -> Contents:
    """Takes a state apart.

    Args:
      state: any tree of placed trees and arrays; may be abstract.

    Raises:
      CheckpointError: two leaves have the same name, or one that is too long, or a leaf is no
        array.
    """
    is_node = lambda node: isinstance(node, Placed | LogicalTree)
    found, treedef = jax.tree_util.tree_flatten_with_path(state, is_leaf=is_node)
    leaves: list[_Leaf] = []
    for number, (path, node) in enumerate(found):
        words = tuple(map(word, path))
        if isinstance(node, Placed):
            leaves += _of_placed(node.layout, words, number)
        elif isinstance(node, LogicalTree):
            leaves += _of_logical(node.layers, words, number)
        else:
            shape, dtype = _described(node, dotted(words))
            leaves.append(_Leaf(words, None, shape, dtype, number, None, None))
    return Contents(tuple(node for _, node in found), treedef, tuple(_stacked(leaves)))


def _of_placed(layout: Layout, before: tuple[str, ...], number: int) -> Iterator[_Leaf]:
    tree = jax.tree.unflatten(layout.treedef, range(len(layout.leaves)))
    for path, i in jax.tree_util.tree_leaves_with_path(tree):
        leaf = layout.leaves[i]
        keys = [getattr(key, "key", None) for key in path]
        place = None if leaf.layer is None else len(before) + keys.index(leaf.layer)
        words = (*before, *map(word, path))
        yield _Leaf(words, place, leaf.shape, leaf.dtype, number, i, leaf.layer)


def _of_logical(layers: Mapping[str, Any], before: tuple[str, ...], number: int) -> Iterator[_Leaf]:
    for i, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(dict(layers))):
        words = (*before, *map(word, path))
        shape, dtype = _described(leaf, dotted(words))
        yield _Leaf(words, len(before), shape, dtype, number, i, path[0].key)


def _described(node: Any, name: str) -> tuple[tuple[int, ...], np.dtype]:
    if hasattr(node, "dtype") and jnp.issubdtype(node.dtype, jax.dtypes.prng_key):
        raise CheckpointError(
            f"{name} is a PRNG key; expected its data. Save jax.random.key_data(key), and wrap it"
            " again with jax.random.wrap_key_data."
        )
    if not hasattr(node, "shape") or not hasattr(node, "dtype"):
        raise CheckpointError(
            f"{name} is {type(node).__name__}; expected an array. Save arrays only, and tell the"
            " rest by metadata=."
        )
    return tuple(node.shape), np.dtype(node.dtype)


def _stacked(leaves: Sequence[_Leaf]) -> Iterator[Array]:
    """Leaves of layers that are alike, together."""
    groups = _groups(leaves)
    arrays: dict[str, list[_Leaf]] = {}
    for leaf in leaves:
        words = list(leaf.words)
        if leaf.place is not None:
            words[leaf.place] = groups[leaf.node, leaf.layer or ""]
        arrays.setdefault(dotted(words), []).append(leaf)
    for name, members in arrays.items():
        if len(name) > _LONGEST:
            raise CheckpointError(
                f"the name {name[:30]}... has {len(name)} characters, expected at most {_LONGEST}:"
                " it is a folder's. Give layers, or the keys of the tree, shorter names."
            )
        layered = members[0].place is not None
        members.sort(key=lambda leaf: in_order(leaf.layer or ""))
        keys = [dotted(leaf.words) for leaf in members]
        kinds = {(leaf.shape, leaf.dtype, leaf.place is None) for leaf in members}
        if len(set(keys)) < len(keys) or len(kinds) > 1 or (len(keys) > 1 and not layered):
            raise CheckpointError(
                f"several leaves of the state have the name {name}: {', '.join(keys)}. Give the"
                " layers, or the keys of the tree, names that differ by more than this."
            )
        yield Array(
            name, members[0].shape, members[0].dtype,
            tuple(
                Member(key, leaf.node, leaf.leaf, leaf.layer)
                for key, leaf in zip(keys, members, strict=True)
            ),
            layered,
        )  # fmt: skip


def _groups(leaves: Sequence[_Leaf]) -> dict[tuple[int, str], str]:
    """The word that stands for each layer of each node: the stem, made unique by a number."""
    inside: dict[tuple[int, str], set[Any]] = {}
    for leaf in leaves:
        if leaf.place is not None:
            around = (leaf.words[: leaf.place], leaf.words[leaf.place + 1 :])
            key = leaf.node, leaf.layer or ""
            inside.setdefault(key, set()).add((around, leaf.shape, leaf.dtype))
    taken: dict[tuple[int, str], Any] = {}
    found = {}
    for node, layer in sorted(inside, key=lambda key: (key[0], in_order(key[1]))):
        like, base = inside[node, layer], stem(layer)
        name, number = base, 1
        while taken.setdefault((node, name), like) != like:
            number += 1
            name = f"{base}-{number}"
        found[node, layer] = name
    return found
