"""The layout of a model's parameters: each layer's leaves on the rank that runs its stage."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxpipe.layers import Layer
from jaxpipe.model import Logical, Outline
from jaxpipe.storage.layout import Layout, LeafSpec, build_layout


def parameter_layout(
    layers: Sequence[Layer],
    outline: Outline,
    rank_of: Sequence[int],
    num_ranks: int,
    num_tensor: int = 1,
    num_parts: int = 1,
) -> Layout:
    """Where each parameter lives.

    Args:
      layers: all layers of the model.
      outline: of the model: its abstract parameters, whole.
      rank_of: for each layer the rank that runs it.
      num_ranks: size of the `pipe` axis.
      num_tensor: size of the `tensor` axis.
      num_parts: how many parts rows may be cut into, over the `data` axis.
    """
    params = outline.params
    by_name = {layer.name: layer for layer in layers}
    users: dict[str, list[int]] = {}
    kinds: dict[object, set[int]] = {}
    for layer in layers:
        ranks = users.setdefault(layer.owner, [])
        if rank_of[layer.index] not in ranks:
            ranks.append(rank_of[layer.index])
        kinds.setdefault(layer.kind, set()).add(rank_of[layer.index])
    leaves = []
    dims = [dim for name in sorted(params) for dim in outline.tensor_dims[name]]
    found = jax.tree_util.tree_leaves_with_path(params)
    for (path, leaf), dim in zip(found, dims, strict=True):
        layer = by_name[path[0].key]
        rank, *copies = users[layer.name]
        frozen = layer.is_frozen(path[1:]) or not jnp.issubdtype(leaf.dtype, jnp.inexact)
        name = jax.tree_util.keystr(path)
        shape, dtype = tuple(leaf.shape), jnp.dtype(leaf.dtype)
        leaves.append(LeafSpec(name, shape, dtype, rank, tuple(copies), frozen, layer.name, dim))
    # Layers that several ranks have choose first: what only one rank has fills the gaps.
    order = sorted(layers, key=lambda layer: (len(kinds[layer.kind]) == 1, layer.index))
    names = [layer.name for layer in order]
    tree = jax.tree.structure(params)
    return build_layout(tree, leaves, num_ranks, names, num_tensor=num_tensor, num_parts=num_parts)


def leaves_of(layout: Layout, params: Logical) -> dict[str, list[int]]:
    """For each owner the indices of its leaves in the layout."""
    indices = jax.tree.unflatten(layout.treedef, range(len(layout.leaves)))
    return {name: jax.tree.leaves(indices[name]) for name in params}
