"""The learning rate of every step, by the name of a schedule."""

import jax
import jax.numpy as jnp
import optax

from jaxpipe.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """A function of the number of steps that are done: a line up, then what the schedule says.

    Args:
      config: its `schedule`, and the settings of that.
      num_steps: of the whole run.

    >>> rate = learning_rate(OptimizerConfig(learning_rate=1.0, warmup_steps=4), num_steps=10)
    >>> [round(float(rate(done)), 2) for done in (0, 3, 4, 10)]
    [0.2, 0.8, 1.0, 0.1]
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    # From one part, not from nothing: the first step is to count.
    up = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
    return optax.join_schedules([up, _after(config, num_steps)], [warmup])


def _after(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """The learning rate so many steps after the warm-up."""
    peak, left = config.learning_rate, max(num_steps - config.warmup_steps, 1)
    if config.schedule == "constant":
        return optax.constant_schedule(peak)
    if config.schedule == "inverse-sqrt":  # arXiv:1706.03762, 5.3
        scale = max(config.warmup_steps, 1)
        return lambda done: peak * jnp.sqrt(scale / (scale + done))
    final = config.setting("final_fraction")
    if config.schedule == "linear":
        return optax.linear_schedule(peak, peak * final, left)
    if config.schedule == "cosine":  # arXiv:1608.03983
        return optax.cosine_decay_schedule(peak, left, alpha=final)
    decay = max(1, min(left, round(config.setting("decay_fraction") * num_steps)))

    def stable_then_down(done: jax.typing.ArrayLike) -> jax.Array:
        share = jnp.clip((jnp.asarray(done) - (left - decay)) / decay, 0, 1)
        return peak * (1 - (1 - final) * jnp.sqrt(share))

    return stable_then_down
