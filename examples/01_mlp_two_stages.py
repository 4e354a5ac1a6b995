"""Two unlike stages: 1024 -> 2048 on one device, 2048 -> 1024 on the other, learning to denoise.

Run it: python examples/01_mlp_two_stages.py
"""

from typing import NamedTuple

import jax
import numpy as np
import optax

import jaxpipe as jp
from jaxpipe.models import mlp
from jaxpipe.simulate_devices import simulate_devices

STEPS = 30


class Result(NamedTuple):
    """What a run shows."""

    first_loss: float
    last_loss: float
    plain_loss: float  # the last one, of the same training without a pipeline


def signals(step: int) -> dict[str, np.ndarray]:
    """64 sums of eight slow waves, 1024 samples each, with noise as loud as they are."""
    rng = np.random.default_rng(step)
    time = np.linspace(0, 1, 1024, dtype=np.float32)
    waves = np.sin(2 * np.pi * (np.arange(1, 9)[:, None] * time + rng.uniform(size=(64, 8, 1))))
    clean = waves.mean(1).astype(np.float32)
    noise = clean.std() * rng.normal(size=clean.shape)
    return dict(inputs=clean + noise.astype(np.float32), targets=clean)


def main() -> Result:
    simulate_devices(2)  # out of one CPU; without effect on a machine with accelerators
    model = jp.PipelineModule(mlp([2048, 1024]), jp.losses.mean_squared_error)
    optimizer = optax.adam(1e-3)
    mesh = jp.make_mesh(pipe=2)
    engine = jp.initialize(model, mesh=mesh, optimizer=optimizer, num_microbatches=8)
    state = engine.init(jax.random.key(0), signals(0))
    print(engine.partition(signals(0)), engine.schedule, sep="\n\n")

    @jax.jit
    def plain_step(params, opt_state, batch):
        loss, grads = jax.value_and_grad(model.loss)(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    params = engine.logical(state.params)
    opt_state = optimizer.init(params)
    losses = []
    for step in range(STEPS):
        state, metrics = engine.train_batch(state, signals(step))
        params, opt_state, plain_loss = plain_step(params, opt_state, signals(step))
        losses.append((float(metrics["loss"]), float(plain_loss)))
        if step % 5 == 0 or step == STEPS - 1:
            print("step {:2}  loss {:.6f}  without a pipeline {:.6f}".format(step, *losses[-1]))
    return Result(losses[0][0], *losses[-1])


if __name__ == "__main__":
    main()
