"""A convolutional net on scikit-learn's digits: what passes between its stages changes shape.

Run it: python examples/02_digits_convnet.py
"""

from typing import NamedTuple

import jax
import numpy as np
import optax
from sklearn.datasets import load_digits

import jaxpipe as jp
from jaxpipe.models import convnet
from jaxpipe.simulate_devices import simulate_devices

EPOCHS, BATCH = 5, 64


class Result(NamedTuple):
    """What a run shows."""

    test_accuracy: float
    boundaries: tuple[int, ...]


def digits() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """1,437 images of 8 x 8 to train on, and 360 others to test with."""
    images, labels = map(np.asarray, load_digits(return_X_y=True))
    order = np.random.default_rng(0).permutation(len(labels))
    inputs = (images[order] / 16).reshape(-1, 8, 8, 1).astype(np.float32)
    targets = labels[order].astype(np.int32)
    train, test = slice(360, None), slice(360)
    return (
        dict(inputs=inputs[train], targets=targets[train]),
        dict(inputs=inputs[test], targets=targets[test]),
    )


def main() -> Result:
    simulate_devices(3)  # out of one CPU; without effect on a machine with accelerators
    train, test = digits()
    model = jp.PipelineModule(
        convnet(num_classes=10), jp.losses.cross_entropy, partition_method="uniform"
    )
    steps = len(train["targets"]) // BATCH
    optimizer = optax.adamw(optax.cosine_decay_schedule(5e-3, EPOCHS * steps))
    mesh = jp.make_mesh(pipe=3)
    engine = jp.initialize(model, mesh=mesh, optimizer=optimizer, num_microbatches=8)
    state = engine.init(jax.random.key(0), {k: v[:BATCH] for k, v in train.items()})
    cut = engine.partition(test)
    print(cut)

    accuracy, metrics = 0.0, {}
    for epoch in range(EPOCHS):
        order = np.random.default_rng(epoch).permutation(len(train["targets"]))
        for rows in np.split(order[: steps * BATCH], steps):
            state, metrics = engine.train_batch(state, {k: v[rows] for k, v in train.items()})
        guesses = np.argmax(engine.predict(state, test), axis=-1)
        accuracy = float(np.mean(guesses == test["targets"]))
        print(f"epoch {epoch}  loss {metrics['loss']:.3f}  test accuracy {accuracy:.3f}")
    return Result(accuracy, cut.boundaries)


if __name__ == "__main__":
    main()
