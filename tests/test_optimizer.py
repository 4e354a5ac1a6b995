"""Optimizers on several ranks: parameters and states are those of plain optax on the whole tree."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from zoo import largest_error

import jaxpipe as jp
from jaxpipe.errors import OptimizerError
from jaxpipe.optimizer import PlacedOptimizer
from jaxpipe.spread import LARGEST_EXCHANGE, Held
from jaxpipe.storage import Layout, LeafSpec, Placed, build_layout, logical, place, specs

NUM_RANKS = 2
SHAPES: dict[str, Any] = {
    "00_Embed": dict(table=(130, 32)),
    "01_Block": dict(up=dict(kernel=(32, 144), bias=(144,)), scale=()),
    "02_Block": dict(up=dict(kernel=(32, 144), bias=(144,)), scale=()),
    "03_Head": dict(kernel=(32, 129)),
}
RANKS = dict(zip(SHAPES, (0, 0, 1, 1), strict=True))
assert 130 * 32 > LARGEST_EXCHANGE < 32 * 129  # too large to cross ranks


def tree(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    draw = lambda shape: rng.normal(size=shape).astype(np.float32)
    return jax.tree.map(draw, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def layout() -> Layout:
    params = tree(0)
    leaves = [
        LeafSpec(jax.tree_util.keystr(path), np.shape(x), x.dtype, RANKS[path[0].key])
        for path, x in jax.tree_util.tree_leaves_with_path(params)
    ]
    return build_layout(jax.tree.structure(params), leaves, NUM_RANKS)


def held(placed: Placed) -> Held:
    return Held({name: x[0] for name, x in placed.buffers.items()}, list(placed.shared))


def joined(held: Held, layout: Layout) -> Placed:
    return Placed({k: x[None] for k, x in held.rows.items()}, tuple(held.shared), layout)


def on_ranks(optimizer: Any, num_steps: int) -> tuple[Any, Any]:
    """(parameters, state) after some steps, each rank with its own leaves."""
    where, mesh = layout(), jp.make_mesh(pipe=NUM_RANKS)
    on = PlacedOptimizer(optimizer, where)

    def init(params: Placed) -> Placed:
        return joined(on.init(held(params)), on.state)

    def update(grads: Placed, state: Placed, params: Placed) -> tuple[Placed, Placed]:
        new, state_ = on.update(held(grads), held(state), held(params), jnp.bool_(True))
        return joined(new, where), joined(state_, on.state)

    trees = specs(where), specs(on.state)
    map_ = lambda fn, i, o: jax.jit(
        jax.shard_map(fn, mesh=mesh, in_specs=i, out_specs=o, check_vma=False)
    )
    update = map_(update, (trees[0], trees[1], trees[0]), trees)
    params = place(where, mesh, tree(0))
    state = map_(init, (trees[0],), trees[1])(params)
    for step in range(num_steps):
        params, state = update(place(where, mesh, tree(1 + step)), state, params)
    return logical(params), logical(state)


def plain(optimizer: Any, num_steps: int) -> tuple[Any, Any]:
    @jax.jit
    def update(grads: Any, state: Any, params: Any) -> Any:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.asarray, tree(0))
    state = optimizer.init(params)
    for step in range(num_steps):
        params, state = update(tree(1 + step), state, params)
    return params, state


def labels(params: Any) -> Any:
    """A label for each layer, which is the layer's name."""
    return {name: jax.tree.map(lambda _, name=name: name, x) for name, x in params.items()}


def only_blocks(params: Any) -> Any:
    return jax.tree.map(lambda label: "Block" in label, labels(params))


BY_LAYER: dict[Any, Any] = {
    "00_Embed": optax.adam(0.01),
    "01_Block": optax.sgd(0.01, momentum=0.9),
    "02_Block": optax.adamw(0.02),
    "03_Head": optax.set_to_zero(),
}
OPTIMIZERS: dict[str, Callable[[], Any]] = dict(
    adamw=lambda: optax.adamw(0.01),
    momentum=lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    lamb=lambda: optax.lamb(0.01, weight_decay=0.1),
    adafactor=lambda: optax.adafactor(0.01, min_dim_size_to_factor=32),
    muon=lambda: optax.contrib.muon(0.01),
    lion=lambda: optax.lion(0.01),
    clipped=lambda: optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 0.1, 2, 6), weight_decay=0.1),
    ),
    masked=lambda: optax.masked(optax.adam(0.01), only_blocks),
    decayed=lambda: optax.adamw(0.01, weight_decay=0.5, mask=only_blocks),
    multi_transform=lambda: optax.multi_transform(BY_LAYER, labels),
    hyperparams=lambda: optax.inject_hyperparams(optax.adamw)(
        learning_rate=optax.linear_schedule(0.0, 0.1, 4)
    ),
)
# Muon's five Newton-Schulz steps multiply matrices whose rounding depends on the program around
# them; LAMB and clipping divide by norms, sums of thousands of squares in another order.
LOOSE = dict(muon=1e-5, lamb=2e-6, clipped=2e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_five_steps_are_those_of_plain_optax(name: str):
    optimizer = OPTIMIZERS[name]()
    params, state = on_ranks(optimizer, 5)
    want, want_state = plain(optimizer, 5)
    assert jax.tree.structure(state) == jax.tree.structure(want_state)
    limit = LOOSE.get(name, 1e-6)
    assert largest_error(params, want) < limit
    assert largest_error(state, want_state) < limit
    moved = jax.tree.map(lambda a, b: np.any(a != b), params, tree(0))
    still = "03_Head" if name == "multi_transform" else None
    assert all(np.all(jax.tree.leaves(x)) == (layer != still) for layer, x in moved.items())


def test_each_leaf_of_the_state_is_where_its_layer_is():
    state = PlacedOptimizer(optax.adamw(0.01), layout()).state
    ranks = {leaf.path: leaf.rank for leaf in state.leaves}
    assert ranks["[0].count"] is None
    for moment in ("mu", "nu"):
        assert ranks[f"[0].{moment}['01_Block']['up']['bias']"] == 0
        assert ranks[f"[0].{moment}['03_Head']['kernel']"] == 1
    assert state.bytes_per_rank <= 1.05 * 2 * layout().bytes_per_rank
    assert sum(leaf.rank is None for leaf in state.leaves) == 1


def test_labels_named_as_layers_do_not_confuse():
    state = PlacedOptimizer(optax.multi_transform(BY_LAYER, labels), layout()).state
    for leaf in state.leaves:
        if leaf.size > 1:
            (name,) = {name for name in SHAPES if leaf.path.count(f"'{name}'") == 2}
            assert leaf.rank == RANKS[name]


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.MultiSteps(optax.adam(0.01), 2).gradient_transformation(),
        optax.apply_if_finite(optax.adam(0.01), 2),
    ],
)
def test_choices_between_whole_trees_are_refused(optimizer: Any):
    with pytest.raises(
        OptimizerError,
        match=r"optimizer.update mixes whole arrays of layers on different ranks: the operation"
        r" `\w+` reads a float32\[\d+.*arrays may not. Use an optimizer",
    ):
        PlacedOptimizer(optimizer, layout())


def test_an_optimizer_that_mixes_layers_is_refused():
    def update(updates: Any, state: Any, params: Any = None) -> Any:
        grads = updates
        first = grads["01_Block"]["up"]["kernel"]
        second = grads["02_Block"]["up"]["kernel"]
        grads = grads | {"02_Block": grads["02_Block"] | dict(up=dict(kernel=first + second))}
        grads["02_Block"]["up"]["bias"] = jnp.zeros(144)
        return grads, state

    start: Any = lambda params: optax.EmptyState()
    mixing = optax.GradientTransformation(start, update)
    with pytest.raises(OptimizerError, match=r"`add` reads a float32\[32, 144\] of one rank"):
        PlacedOptimizer(mixing, layout())
