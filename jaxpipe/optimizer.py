"""optax on placed parameters: it sees the logical tree, each rank holds its own leaves."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxpipe.spread import Held, Spread
from jaxpipe.storage import Layout, LeafSpec, build_layout

PyTree = Any


class PlacedOptimizer:
    """An optax optimizer for parameters that live on several ranks.

    Any optax transformation that treats leaves one by one works, and so does what ties them
    together by small values: `clip_by_global_norm` takes the norm over all stages.

    Args:
      optimizer: from optax.
      params: layout of the parameters; frozen ones are left out of all trees.

    Raises:
      OptimizerError: when the optimizer mixes whole arrays of different layers.
    """

    def __init__(self, optimizer: optax.GradientTransformation, params: Layout):
        self.params = params.trainable
        abstract = self.params.treedef.unflatten(
            [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in self.params.leaves]
        )
        self.state = state_layout(jax.eval_shape(optimizer.init, abstract), self.params)
        self._init = Spread(
            lambda p: (optimizer.init(p),), [self.params], [self.state], "optimizer.init"
        )

        def update(grads: PyTree, state: PyTree, params: PyTree) -> tuple[PyTree, PyTree]:
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        layouts = [self.params, self.state]
        self._update = Spread(update, [self.params, *layouts[::-1]], layouts, "optimizer.update")

    def init(self, params: Held) -> Held:
        """A fresh state, inside `shard_map`."""
        rows = {name: jnp.zeros(b.shape, b.dtype) for name, b in self.state.buffers.items()}
        return self._init([params], [Held(rows, [])])[0]

    def update(self, grads: Held, state: Held, params: Held) -> tuple[Held, Held]:
        """New parameters and state, inside `shard_map`; frozen rows are passed on."""
        new_params, new_state = self._update([grads, state, params], [params, state])
        return new_params, new_state


def state_layout(state: PyTree, params: Layout) -> Layout:
    """Where an optimizer's state lives: a leaf that stands under a layer's name, with its layer.

    Args:
      state: abstract, as `optimizer.init` gives it.
      params: layout of the trainable parameters.
    """
    ranks, inner = _layers_of(params)
    leaves = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        layer = _layer_of(path, inner)
        name = jax.tree_util.keystr(path)
        rank = None if layer is None else ranks[layer]
        spec = LeafSpec(name, tuple(leaf.shape), jnp.dtype(leaf.dtype), rank, layer=layer)
        leaves.append(spec)
    return build_layout(jax.tree.structure(state), leaves, params.num_ranks, params.layers)


def _layers_of(params: Layout) -> tuple[dict[str, int | None], dict[str, set[Any]]]:
    """Each layer's rank, and the key paths within it, with all their beginnings."""
    tree = params.treedef.unflatten(params.leaves)
    ranks, inner = {}, {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = path[0].key
        ranks[name] = leaf.rank
        inner.setdefault(name, set()).update(path[1:n] for n in range(1, len(path) + 1))
    return ranks, inner


def _layer_of(path: Sequence[Any], inner: Mapping[str, set[Any]]) -> str | None:
    """The layer that a leaf of the state belongs to, if any.

    A label of `optax.multi_transform` may be a layer's name too, so what follows the name must be
    a path of that layer.
    """
    for n, key in enumerate(path):
        name = getattr(key, "key", None)
        if isinstance(name, str) and name in inner and tuple(path[n + 1 :]) in inner[name]:
            return name
    return None
