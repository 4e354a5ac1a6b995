"""A train step of one's own around `value_and_grad`: an autoencoder with averaged weights.

Run it: python examples/03_own_train_step.py
"""

from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from sklearn.datasets import load_digits

import jaxpipe as jp
from jaxpipe.models import mlp
from jaxpipe.simulate_devices import simulate_devices

STEPS = 60


class Result(NamedTuple):
    """What a run shows."""

    first_loss: float
    last_loss: float
    plain_loss: float  # of the last weights, without a pipeline
    averaged_loss: float  # of the averaged weights
    gradient_norm: float


def main() -> Result:
    simulate_devices(4)  # out of one CPU; without effect on a machine with accelerators
    images = load_digits(return_X_y=True)[0][:256].astype(np.float32) / 16
    batch = dict(inputs=images, targets=images)
    model = jp.PipelineModule(mlp([48, 16, 48, 64]), jp.losses.mean_squared_error)
    engine = jp.initialize(model, mesh=jp.make_mesh(pipe=4), num_microbatches=8)
    optimizer = optax.adam(3e-3)

    # Placed parameters are a pytree of arrays `[ranks, ...]`. What works element by element, and
    # sums such as norms, mean on them what they mean on the model's own tree.
    @jax.jit
    def train_step(params: Any, averaged: Any, opt_state: Any, key: jax.Array):
        loss, grads = engine.value_and_grad(params, batch, key)
        updates, opt_state = optimizer.update(grads, opt_state, params)  # pyright: ignore[reportArgumentType]
        params = optax.apply_updates(params, updates)
        averaged = optax.incremental_update(params, averaged, step_size=0.1)
        return params, averaged, opt_state, dict(loss=loss, norm=optax.tree.norm(grads))

    params = averaged = engine.init(jax.random.key(0), batch).params
    opt_state = jax.jit(optimizer.init)(params)
    logged = []
    for step in range(STEPS):
        key = jax.random.fold_in(jax.random.key(1), step)
        params, averaged, opt_state, metrics = train_step(params, averaged, opt_state, key)
        logged.append({name: float(value) for name, value in metrics.items()})
        if step % 10 == 0:
            print("step {:2}  loss {loss:.5f}  gradient norm {norm:.5f}".format(step, **logged[-1]))

    last, _ = engine.value_and_grad(params, batch)
    plain, average = (float(model.loss(engine.logical(p), batch)) for p in (params, averaged))
    print(f"at the end {last:.6f}, without a pipeline {plain:.6f}, averaged weights {average:.6f}")
    return Result(logged[0]["loss"], float(last), plain, average, logged[0]["norm"])


if __name__ == "__main__":
    main()
