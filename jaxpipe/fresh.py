"""Fresh parameters, each layer's made on the devices that keep it."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from jaxpipe.executor.run import when
from jaxpipe.layers import Layer
from jaxpipe.mesh import PIPE
from jaxpipe.model import Outline, PipelineModule
from jaxpipe.partition import Partition
from jaxpipe.storage import Home, Layout, write
from jaxpipe.storage.parameters import leaves_of


def fresh_rows(
    model: PipelineModule,
    outline: Outline,
    partition: Partition,
    placement: Sequence[int],
    layout: Layout,
    key: jax.Array,
) -> dict[str, jax.Array]:
    """This rank's row of every parameter buffer, inside `shard_map`.

    Layers that are alike on several ranks are compiled once: which layer it is, and so its key, is
    looked up by rank.
    """
    indices = leaves_of(layout, outline.params)
    makers: dict[object, tuple[list[Layer], list[Home], dict[int, int]]] = {}
    for stage in range(partition.num_stages):
        rank = placement[stage]
        first = partition.boundaries[stage]
        own = [model.layers[i] for i in partition.stage(stage) if not model.layers[i].is_tied]
        homes = [layout.homes[i][rank] for layer in own for i in indices[layer.name]]
        where = tuple(layer.index - first for layer in own)
        like = (tuple(layer.kind for layer in own), tuple(homes), where)
        makers.setdefault(like, (own, homes, {}))[2][rank] = first
    rank = lax.axis_index(PIPE)
    rows = {name: jnp.zeros(spec.shape, spec.dtype) for name, spec in layout.buffers.items()}
    for own, homes, firsts in makers.values():
        table = jnp.array([firsts.get(r, 0) for r in range(layout.num_ranks)], jnp.int32)
        here = jnp.isin(rank, jnp.array(list(firsts)))
        free = iter(homes)
        for layer in own:
            own_homes = [next(free) for _ in indices[layer.name]]
            offset = layer.index - min(firsts.values())

            def body(
                zero: jax.Array, rows: dict[str, jax.Array], layer: Layer = layer,
                homes: list[Home] = own_homes, index: jax.Array = table[rank] + offset,
            ) -> dict[str, jax.Array]:  # fmt: skip
                rows = dict(rows)
                made = model.init_layer(layer, outline, jax.random.fold_in(key, index + zero))
                for leaf, home in zip(jax.tree.leaves(made), homes, strict=True):
                    write(rows, home, leaf)
                return rows

            # One guard a layer: what making it takes is free again before the next one is made.
            rows = when(here, body, rows)
    return rows
