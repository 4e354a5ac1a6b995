"""Optimizers of optax by name, each of which is tested on parameters that are spread and cut."""

from collections.abc import Callable
from typing import Any

import jax
import optax
import optax.contrib

from jaxpipe.config import OptimizerConfig
from jaxpipe.learning_rate import learning_rate

PyTree = Any
_MATCHES_ADAM = 0.2  # root mean square of an update (arXiv:2502.16982, 2.2)


def build_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """The optimizer that a configuration names, after clipping; only matrices decay.

    Args:
      config: which one, and its settings.
      num_steps: of the whole run, which the learning rate depends on.
    """
    named = _BUILDERS[config.name](config, learning_rate(config, num_steps))
    if config.clip_norm is None:
        return named
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), named)


def _matrices(params: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _adam(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    b1, b2, epsilon = (config.setting(name) for name in ("beta1", "beta2", "epsilon"))
    return optax.adam(rate, b1, b2, epsilon, nesterov=bool(config.setting("nesterov")))


def _adamw(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(
        rate,
        config.setting("beta1"),
        config.setting("beta2"),
        config.setting("epsilon"),
        weight_decay=config.setting("weight_decay"),
        mask=_matrices,
        nesterov=bool(config.setting("nesterov")),
    )


def _sgd(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    momentum, nesterov = config.setting("momentum"), bool(config.setting("nesterov"))
    decay = optax.add_decayed_weights(config.setting("weight_decay"), _matrices)
    return optax.chain(decay, optax.sgd(rate, momentum or None, nesterov))


def _lion(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    decay = config.setting("weight_decay")
    b1, b2 = config.setting("beta1"), config.setting("beta2")
    return optax.lion(rate, b1, b2, weight_decay=decay, mask=_matrices)


def _adafactor(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.adafactor(rate, momentum=config.setting("momentum") or None)


def _lamb(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    b1, b2, epsilon = (config.setting(name) for name in ("beta1", "beta2", "epsilon"))
    decay = config.setting("weight_decay")
    return optax.lamb(rate, b1, b2, epsilon, weight_decay=decay, mask=_matrices)


def _lars(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.lars(
        rate,
        config.setting("weight_decay"),
        weight_decay_mask=_matrices,
        trust_ratio_mask=_matrices,
        momentum=config.setting("momentum"),
        nesterov=bool(config.setting("nesterov")),
    )


def _muon(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.contrib.muon(
        rate,
        beta=config.setting("momentum"),
        eps=config.setting("epsilon"),
        weight_decay=config.setting("weight_decay"),
        nesterov=bool(config.setting("nesterov")),
        adam_b1=config.setting("beta1"),
        adam_b2=config.setting("beta2"),
        muon_weight_dimension_numbers=_block_matrices,
        consistent_rms=_MATCHES_ADAM,
    )


def _block_matrices(params: PyTree) -> PyTree:
    """Muon is for maps between features: not for embeddings, nor for logits."""

    def numbers(path: Any, leaf: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
        is_block = any(str(getattr(key, "key", "")).endswith("_Block") for key in path)
        return optax.contrib.MuonDimensionNumbers() if is_block and leaf.ndim == 2 else None

    return jax.tree_util.tree_map_with_path(numbers, params)


_BUILDERS: dict[str, Callable[[OptimizerConfig, optax.Schedule], optax.GradientTransformation]] = {
    "adamw": _adamw,
    "adam": _adam,
    "sgd": _sgd,
    "lion": _lion,
    "adafactor": _adafactor,
    "lamb": _lamb,
    "lars": _lars,
    "muon": _muon,
}
