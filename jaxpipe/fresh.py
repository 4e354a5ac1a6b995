"""Fresh parameters, each layer's made on the devices that keep it."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxpipe import jaxpr as jaxprs
from jaxpipe.executor.run import when
from jaxpipe.layers import Layer
from jaxpipe.mesh import PIPE
from jaxpipe.model import Outline, PipelineModule
from jaxpipe.partition import Partition
from jaxpipe.pieces import own_piece
from jaxpipe.storage import Home, Layout, write
from jaxpipe.storage.parameters import leaves_of


class FreshRows:
    """Makes a device's row of every parameter buffer.

    Layers are traced here, outside any mesh, so that they make what they make without one; each
    device then keeps its piece.

    Args:
      model: the layers.
      outline: whole shapes.
      partition: which layers make up which stage.
      placement: stage -> rank.
      layout: where parameters live at rest.
      key: abstract.
    """

    def __init__(
        self,
        model: PipelineModule,
        outline: Outline,
        partition: Partition,
        placement: Sequence[int],
        layout: Layout,
        key: Any,
    ):
        self._layout = layout
        self._indices = leaves_of(layout, outline.params)
        # Layers that are alike on several ranks are compiled once: which layer it is, and so its
        # key, is looked up by rank.
        self._makers: dict[object, tuple[list[Layer], list[Home], dict[int, int]]] = {}
        for stage in range(partition.num_stages):
            rank, first = placement[stage], partition.boundaries[stage]
            own = [model.layers[i] for i in partition.stage(stage) if not model.layers[i].is_tied]
            homes = [layout.homes[i][rank] for layer in own for i in self._indices[layer.name]]
            where = tuple(layer.index - first for layer in own)
            like = (tuple(layer.kind for layer in own), tuple(homes), where)
            self._makers.setdefault(like, (own, homes, {}))[2][rank] = first
        self._traced = {
            layer.name: jaxprs.trace(lambda k, x=layer: model.init_layer(x, outline, k), key)[0]
            for own, _, _ in self._makers.values()
            for layer in own
        }

    def __call__(self, key: jax.Array) -> dict[str, jax.Array]:
        """The rows, inside `shard_map`; the same key gives the same parameters on any mesh."""
        rank, layout = lax.axis_index(PIPE), self._layout
        rows = {
            name: jnp.zeros(layout.row_shape(name), b.dtype) for name, b in layout.buffers.items()
        }
        for own, homes, firsts in self._makers.values():
            table = jnp.array([firsts.get(r, 0) for r in range(layout.num_ranks)], jnp.int32)
            here = jnp.isin(rank, jnp.array(list(firsts)))
            free = iter(homes)
            for layer in own:
                own_homes = [next(free) for _ in self._indices[layer.name]]
                offset = layer.index - min(firsts.values())

                def body(
                    zero: jax.Array, rows: dict[str, jax.Array], layer: Layer = layer,
                    homes: list[Home] = own_homes, index: jax.Array = table[rank] + offset,
                ) -> dict[str, jax.Array]:  # fmt: skip
                    return self._written(layer, homes, jax.random.fold_in(key, index + zero), rows)

                # One guard a layer: what making it takes is free again before the next is made.
                rows = when(here, body, rows)
        return rows

    def _written(
        self, layer: Layer, homes: Sequence[Home], key: jax.Array, rows: dict[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """The rows with one layer's parameters."""
        rows = dict(rows)
        made = jaxprs.call(self._traced[layer.name], [key])
        for i, home, leaf in zip(self._indices[layer.name], homes, made, strict=True):
            cut = self._layout.held_cut(i)
            write(rows, home, leaf if cut.is_whole else own_piece(leaf, cut))
        return rows
