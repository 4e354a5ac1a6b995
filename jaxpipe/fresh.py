"""Fresh parameters, each layer's made on the devices that keep it."""

from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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
        self._groups: dict[Hashable, _Alike] = {}
        for stage, rank in enumerate(placement):
            for layer in (model.layers[i] for i in partition.stage(stage)):
                if layer.is_tied:
                    continue
                kind = model.init_kind(layer, outline)
                if kind not in self._groups:
                    maker = lambda k, x=layer: model.init_layer(x, outline, k)
                    self._groups[kind] = _Alike(layout, jaxprs.trace(maker, key)[0])
                self._groups[kind].add(rank, layer, indices[layer.name])

    def __call__(self, key: jax.Array) -> dict[str, jax.Array]:
        """The rows, inside `shard_map`; the same key gives the same parameters on any mesh."""
        layout = self._layout
        rows = {
            name: jnp.zeros(layout.row_shape(name), b.dtype) for name, b in layout.buffers.items()
        }
        for group in self._groups.values():
            rows = group.made(key, rows)
        return rows


class _Alike:
    """Layers that make their parameters alike, each from a key of its own."""

    def __init__(self, layout: Layout, traced: jaxprs.ClosedJaxpr):
        self._layout, self._traced = layout, traced
        self._numbers: list[list[int]] = [[] for _ in range(layout.num_ranks)]  # of layers
        # Where a layer's leaves go; one layer after the other has buffers of its own, those that
        # correspond on several ranks the same ones.
        self._homes: dict[tuple[Home, ...], list[list[int]]] = {}
        self._indices: Sequence[int] = ()

    def add(self, rank: int, layer: Layer, indices: Sequence[int]) -> None:
        """Another of these layers, with the indices of its leaves in the layout."""
        homes = tuple(self._layout.homes[i][rank] for i in indices)
        places = self._homes.setdefault(homes, [[] for _ in self._numbers])
        places[rank].append(len(self._numbers[rank]))
        self._numbers[rank].append(layer.index)
        self._indices = indices  # leaves of layers that are alike are cut alike

    def made(self, key: jax.Array, rows: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """The rows with the parameters of these layers that are this rank's."""
        rank, most = lax.axis_index(PIPE), max(map(len, self._numbers))
        numbers = np.zeros((len(self._numbers), most), np.uint32)
        for row, own in zip(numbers, self._numbers, strict=True):
            row[: len(own)] = own
        count = jnp.array([len(own) for own in self._numbers], jnp.uint32)[rank]

        # What making a layer takes is free again before the next one is made.
        def body(turn: jax.Array, rows: dict[str, jax.Array]) -> dict[str, jax.Array]:
            number = jnp.array(numbers)[rank, turn]
            leaves = self._pieces(jax.random.fold_in(key, number))
            for homes, places in self._homes.items():
                here = np.zeros(numbers.shape, np.uint32)
                for row, turns in zip(here, places, strict=True):
                    row[turns] = 1

                def put(zero: jax.Array, rows: Any, homes: tuple[Home, ...] = homes) -> Any:
                    rows = dict(rows)
                    for home, leaf in zip(homes, leaves, strict=True):
                        write(rows, home, leaf)
                    return rows

                rows = when(jnp.array(here)[rank, turn], put, rows)
            return rows

        return lax.fori_loop(jnp.uint32(0), count, body, rows)

    def _pieces(self, key: jax.Array) -> list[jax.Array]:
        """What this device holds of a layer's leaves."""
        made, cuts = jaxprs.call(self._traced, [key]), map(self._layout.held_cut, self._indices)
        return [
            leaf if cut.is_whole else own_piece(leaf, cut)
            for leaf, cut in zip(made, cuts, strict=True)
        ]
