"""Fresh parameters, each layer's made on the devices that keep it."""

from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxpipe import jaxpr as jaxprs
from jaxpipe.executor.run import when
from jaxpipe.mesh import PIPE
from jaxpipe.model import Outline, PipelineModule
from jaxpipe.partition import Partition
from jaxpipe.pieces import own_piece
from jaxpipe.storage import Home, Layout, read, write
from jaxpipe.storage.parameters import leaves_of


class FreshRows:
    """Makes a device's row of every parameter buffer.

    Layers are traced here, outside any mesh, so that they make what they make without one; each
    device then keeps its piece. Layers that are alike are compiled once, however many there are:
    each rank makes its own, one after the other, in one loop.

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
        indices = leaves_of(layout, outline.params)
        self._groups: dict[Hashable, list[_Alike]] = {}
        for stage, rank in enumerate(placement):
            for layer in (model.layers[i] for i in partition.stage(stage)):
                if layer.is_tied:
                    continue
                kind, own = model.init_kind(layer, outline), indices[layer.name]
                if kind not in self._groups:
                    maker = lambda k, x=layer: model.init_layer(x, outline, k)
                    traced, _ = jaxprs.trace(maker, key)
                    self._groups[kind] = [_Alike(layout, traced, n) for n in range(len(own))]
                for group, index in zip(self._groups[kind], own, strict=True):
                    group.add(rank, layer.index, index)

    def __call__(self, key: jax.Array) -> dict[str, jax.Array]:
        """The rows, inside `shard_map`; the same key gives the same parameters on any mesh."""
        layout = self._layout
        rows = {
            name: jnp.zeros(layout.row_shape(name), b.dtype) for name, b in layout.buffers.items()
        }
        for groups in self._groups.values():
            for group in groups:
                rows = group.made(key, rows)
        return rows


class _Alike:
    """A leaf of several layers, which they make alike, each from a key of its own.

    Args:
      layout: where parameters live at rest.
      traced: key -> a layer's leaves.
      place: of the leaf among them.
    """

    def __init__(self, layout: Layout, traced: jaxprs.ClosedJaxpr, place: int):
        self._layout, self._traced, self._place = layout, traced, place
        self._layers: list[list[int]] = [[] for _ in range(layout.num_ranks)]  # by rank, and turn
        # On one rank each has a home of its own; those that correspond on several have the same.
        self._homes: dict[Home, list[tuple[int, int]]] = {}  # (rank, turn)
        self._index = 0

    def add(self, rank: int, layer: int, index: int) -> None:
        """Another such leaf: its layer's number, and its index in the layout."""
        turns = self._homes.setdefault(self._layout.homes[index][rank], [])
        turns.append((rank, len(self._layers[rank])))
        self._layers[rank].append(layer)
        self._index = index  # any of them: they have one shape, and are cut alike

    def made(self, key: jax.Array, rows: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """The rows with those of these leaves that are this rank's."""
        rank, most = lax.axis_index(PIPE), max(map(len, self._layers))
        count = jnp.array([len(own) for own in self._layers], jnp.uint32)[rank]
        layers = [own + [0] * (most - len(own)) for own in self._layers]
        layout, index = self._layout, self._index
        empty = jnp.zeros(layout.shape_of(index), layout.leaves[index].dtype)

        def body(turn: jax.Array, rows: dict[str, jax.Array]) -> dict[str, jax.Array]:
            layer = jnp.array(layers, jnp.uint32)[rank, turn]
            make = lambda zero, _: self._leaf(jax.random.fold_in(key, layer + zero))
            # In a loop of its own, so that it is made once, though each home asks for it.
            leaf, rows = when(turn < count, make, empty), dict(rows)
            for home, turns in self._homes.items():
                here = np.zeros((len(layers), most), bool)
                here[tuple(zip(*turns, strict=True))] = True
                old = read(rows, home, leaf.shape)
                write(rows, home, jnp.where(jnp.array(here)[rank, turn], leaf, old))
            return rows

        return lax.fori_loop(jnp.uint32(0), count, body, rows)

    def _leaf(self, key: jax.Array) -> jax.Array:
        """What this device holds of the leaf that a layer makes of its key."""
        jaxpr, cut = self._traced.jaxpr, self._layout.held_cut(self._index)
        leaf = jaxpr.outvars[self._place]
        made = jaxprs.initial_values(self._traced, [key])
        [value] = jaxprs.evaluate(jaxprs.needed(jaxpr.eqns, [leaf]), made, [leaf])
        value = value if cut.is_whole else own_piece(value, cut)
        value = value.reshape(self._layout.shape_of(self._index))
        return value.astype(self._layout.leaves[self._index].dtype)
