"""From any layout into any other: equal parameters and optimizer state, to the bit."""

import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from zoo import largest_error

import jaxpipe as jp
from jaxpipe import nn
from jaxpipe.checkpoint import Checkpoints
from jaxpipe.models import GPTConfig, gpt
from jaxpipe.storage import place

ids = np.random.default_rng(0).integers(0, 16, (24, 9), np.int32)
BATCH = dict(inputs=ids[:, :-1], targets=ids[:, 1:])
CONFIG = GPTConfig(vocab_size=16, width=16, num_heads=4, num_layers=4, sequence_length=8, tied=True)
# Adafactor's state has other shapes than the parameters, and some leaves are decayed alone.
OPTIMIZER = optax.chain(
    optax.clip_by_global_norm(0.5),
    optax.scale_by_factored_rms(min_dim_size_to_factor=4),
    optax.adamw(1e-3, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
)


class Way(NamedTuple):
    """A layout."""

    pipe: int
    data: int = 1
    tensor: int = 1
    zero: Any = 0
    schedule: str = "1f1b"
    partition: Any = "parameters"

    def engine(self) -> jp.Engine:
        model = jp.PipelineModule(gpt(CONFIG), nn.cross_entropy, partition_method=self.partition)
        mesh = jp.make_mesh(pipe=self.pipe, data=self.data, tensor=self.tensor)
        return jp.initialize(
            model, mesh=mesh, optimizer=OPTIMIZER, schedule=self.schedule, num_microbatches=4,
            zero=self.zero,
        )  # fmt: skip

    def __str__(self) -> str:
        return f"{self.pipe}x{self.data}x{self.tensor}-{self.zero}-{self.schedule}-{self.partition}"


WAYS = [
    Way(1),
    Way(4),
    Way(2, 2, 2, 1, "zb-h1"),
    Way(2, 1, 2, 0, "interleaved"),
    Way(2, 3, 1, 3, "zb-v", "uniform"),
    Way(1, 2, 4, 2),
    Way(3, 2, 1, jp.Zero(3, per="use"), partition=(0, 1, 2, 8)),
]


class Layouts:
    """Engines, and in each one's layout a checkpoint of the same state."""

    def __init__(self, folder: Path) -> None:
        self.engines = {way: way.engine() for way in WAYS}
        self.like = {way: e.abstract_state(BATCH) for way, e in self.engines.items()}
        state = self.drawn(WAYS[2])
        self.want = self.plain(WAYS[2], state)
        self.folders = {way: folder / str(i) for i, way in enumerate(WAYS)}
        with Checkpoints(folder / "first") as checkpoints:
            checkpoints.save(1, state)
        for way in WAYS:
            with Checkpoints(folder / "first") as checkpoints:
                state = checkpoints.restore(1, self.like[way])
            with Checkpoints(self.folders[way]) as checkpoints:
                checkpoints.save(1, state)

    def drawn(self, way: Way) -> jp.TrainState:
        """A state whose every number is another."""
        rng, like = np.random.default_rng(0), self.like[way]
        model = jp.PipelineModule(gpt(CONFIG), nn.cross_entropy)
        init = jax.jit(functools.partial(model.init, batch=BATCH))
        assert like.opt_state is not None
        draw = lambda leaf: rng.uniform(0, 1e6, leaf.shape).astype(leaf.dtype)
        leaves = map(draw, like.opt_state.layout.leaves)
        opt_state = jax.tree.unflatten(like.opt_state.layout.treedef, leaves)
        mesh = self.engines[way].mesh
        counters = dict(step=jnp.int32(1), key=jnp.array([5, 6], jnp.uint32), skipped=jnp.int32(2))
        return dataclasses.replace(
            like,
            params=place(like.params.layout, mesh, init(jax.random.key(0))),
            opt_state=place(like.opt_state.layout, mesh, opt_state),
            **counters,
        )

    def plain(self, way: Way, state: jp.TrainState) -> Any:
        """Everything in a state, on the host."""
        logical = self.engines[way].logical
        assert state.opt_state is not None
        trees = logical(state.params), logical(state.opt_state), state.step, state.key
        return jax.tree.map(np.array, trees)


@pytest.fixture(scope="module")
def layouts(tmp_path_factory) -> Layouts:
    return Layouts(tmp_path_factory.mktemp("layouts"))


# Each one saves, and each one loads what another has saved.
FEW = [*zip(WAYS, [*WAYS[1:], WAYS[0]], strict=True)]
REST = [pair for pair in itertools.product(WAYS, WAYS) if pair not in FEW]


@pytest.mark.parametrize(
    ("saved", "loaded"),
    [*FEW, *[pytest.param(*pair, marks=pytest.mark.slow) for pair in REST]],
    ids=str,
)
def test_what_one_layout_saves_any_other_loads(layouts: Layouts, saved: Way, loaded: Way):
    with Checkpoints(layouts.folders[saved]) as checkpoints:
        state = checkpoints.restore(1, layouts.like[loaded])
    jax.tree.map(np.testing.assert_array_equal, layouts.plain(loaded, state), layouts.want)


def test_files_are_the_same_bytes_whichever_layout_wrote_them(layouts: Layouts):
    found = []
    for way in WAYS:
        if way.tensor == 1:  # chunks are pieces
            with Checkpoints(layouts.folders[way]) as checkpoints:
                files = checkpoints.manifest(1).files
            found.append({name: of for name, of in files.items() if "/c." in name})
    assert len(found) == 4 and all(files == found[0] for files in found)


@pytest.mark.parametrize("way", [WAYS[5], pytest.param(WAYS[1], marks=pytest.mark.slow)], ids=str)
def test_training_goes_on_in_another_layout(layouts: Layouts, way: Way):
    first, other = layouts.engines[WAYS[2]], layouts.engines[way]
    with Checkpoints(layouts.folders[WAYS[0]]) as checkpoints:
        here = checkpoints.restore(1, layouts.like[WAYS[2]])
        there = checkpoints.restore(1, layouts.like[way])
    loss, grads = first.value_and_grad(here.params, BATCH, here.step_key)
    other_loss, other_grads = other.value_and_grad(there.params, BATCH, there.step_key)
    np.testing.assert_allclose(other_loss, loss, rtol=1e-6)
    assert largest_error(other.logical(other_grads), first.logical(grads)) < 1e-6
