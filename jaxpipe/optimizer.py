"""optax on placed parameters: it sees the logical tree, each rank holds its own leaves."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxpipe.executor.run import when
from jaxpipe.spread import Held, Spread
from jaxpipe.storage import Layout, LeafSpec, build_layout
from jaxpipe.storage.parts import gather_parts, own_part, put_beginning

PyTree = Any


class PlacedOptimizer:
    """An optax optimizer for parameters that live on several ranks.

    Any optax transformation that treats leaves one by one works, and so does what ties them
    together by small values: `clip_by_global_norm` takes the norm over all stages.

    Args:
      optimizer: from optax.
      params: layout of the parameters at rest; frozen ones are left out of all trees. Where their
        rows may be cut, the state's are, gradients come cut, and each data rank updates its part.

    Raises:
      OptimizerError: when the optimizer mixes whole arrays of different layers.
    """

    def __init__(self, optimizer: optax.GradientTransformation, params: Layout):
        self._at_rest = params
        self.params = params.trainable.cut
        self.state = state_layout(optimizer, params)
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
        shape = self.state.row_shape
        rows = {name: jnp.zeros(shape(name), b.dtype) for name, b in self.state.buffers.items()}
        (state,), _ = self._init([self._own(params)], [Held(rows, [])])
        return state

    def update(
        self, grads: Held, state: Held, params: Held, wanted: jax.Array
    ) -> tuple[Held, Held]:
        """New parameters and state, inside `shard_map`; frozen rows are passed on.

        Args:
          grads: of this device.
          state: of this device.
          params: of this device, at rest.
          wanted: bool scalar, the same on all devices; where False, nothing changes.
        """

        def body(zero: jax.Array, now: Any) -> Any:
            (rows, shared), own = now
            # Or XLA would move what reads gradients alone out of the guard, meetings and all.
            tied, _ = lax.optimization_barrier((grads.rows, zero))
            state, params = Held(dict(rows), shared), Held(dict(own), [])
            new, moved = self._updated(Held(tied, []), state, params)
            return (moved.rows, moved.shared), new.rows

        held = (state.rows, state.shared), params.rows
        (rows, shared), own = when(wanted, body, held)
        return Held(own, params.shared), Held(rows, shared)

    def _updated(self, grads: Held, state: Held, params: Held) -> tuple[Held, Held]:
        own = self._own(params)
        (new, new_state), after = self._update([grads, state, own], [own, state])
        if own is params:
            return new, new_state

        def gather(zero: jax.Array, rows: dict[str, jax.Array]) -> dict[str, jax.Array]:
            parts, _ = lax.optimization_barrier((new.rows, zero))
            return put_beginning(rows, gather_parts(self.params, parts))

        rows = when(1 + after, gather, params.rows)
        return Held(rows, params.shared), new_state

    def _own(self, params: Held) -> Held:
        """The parameters that this data rank updates."""
        if self._at_rest.is_cut or not self.params.is_cut:
            return params
        return Held(own_part(self.params, params.rows), params.shared)


def state_layout(optimizer: optax.GradientTransformation, params: Layout) -> Layout:
    """Where an optimizer's state lives: a leaf that stands under a layer's name, with its layer.

    Args:
      optimizer: from optax.
      params: layout of the parameters at rest.
    """
    params = params.trainable.cut
    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in params.leaves]
    state = jax.eval_shape(optimizer.init, params.treedef.unflatten(shapes))
    ranks, inner = _layers_of(params)
    cuts = {leaf.path: (leaf.shape, leaf.tensor_dim) for leaf in params.leaves}
    leaves = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        layer, within = _layer_of(path, inner)
        name, shape = jax.tree_util.keystr(path), tuple(leaf.shape)
        rank = None if layer is None else ranks[layer]
        # What is of a parameter's shape is cut as the parameter is.
        of_shape, dim = cuts.get(jax.tree_util.keystr(tuple(within)), (None, None))
        dim = dim if shape == of_shape else None
        dtype = jnp.dtype(leaf.dtype)
        leaves.append(LeafSpec(name, shape, dtype, rank, layer=layer, tensor_dim=dim))
    layout = build_layout(
        jax.tree.structure(state), leaves, params.num_ranks, params.layers,
        num_tensor=params.num_tensor, num_parts=params.num_parts,
    )  # fmt: skip
    return layout.cut


def _layers_of(params: Layout) -> tuple[dict[str, int | None], dict[str, set[Any]]]:
    """Each layer's rank, and the key paths within it, with all their beginnings."""
    tree = params.treedef.unflatten(params.leaves)
    ranks, inner = {}, {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = path[0].key
        ranks[name] = leaf.rank
        inner.setdefault(name, set()).update(path[1:n] for n in range(1, len(path) + 1))
    return ranks, inner


def _layer_of(
    path: Sequence[Any], inner: Mapping[str, set[Any]]
) -> tuple[str | None, Sequence[Any]]:
    """The layer that a leaf of the state belongs to, if any, and its path from there.

    A label of `optax.multi_transform` may be a layer's name too, so what follows the name must be
    a path of that layer.
    """
    for n, key in enumerate(path):
        name = getattr(key, "key", None)
        if isinstance(name, str) and name in inner and tuple(path[n + 1 :]) in inner[name]:
            return name, path[n:]
    return None, ()
