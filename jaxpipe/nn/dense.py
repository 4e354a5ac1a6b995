"""Dense layers with one matrix cut over the `tensor` axis, by its columns or by its rows."""

import functools
from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax

from jaxpipe import tensor
from jaxpipe.nn.cut import cut_param, is_cut
from jaxpipe.nn.recompute import recomputed

Activation = Callable[..., jax.Array]
NORMAL = nn.initializers.normal(0.02)


class ColumnDense(nn.Module):
    """`x @ kernel + bias`, of which each rank computes some features (arXiv:1909.08053).

    Attributes:
      features: how many come out, on all ranks together; a multiple of their number.
      use_bias: whether a bias is added.
      sequence_parallel: whether `x` comes cut along time (arXiv:2205.05198).
      kernel_init: of the kernel, `[width, features]`; the bias starts at zero.
    """

    features: int
    use_bias: bool = True
    sequence_parallel: bool = False
    kernel_init: nn.initializers.Initializer = NORMAL

    @property
    def takes_cut(self) -> bool:
        """Whether its input comes cut over the `tensor` axis, where that has several ranks."""
        return self.sequence_parallel

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Whole `[..., width]` to `[..., features]` cut along the last dim.

        With `sequence_parallel`, `[batch, time, width]` cut along time to `[batch, time, features]`
        cut along the features.

        Raises:
          ConfigError: the ranks do not divide the features.
        """
        shape = (x.shape[-1], self.features)
        kernel = cut_param(self, "kernel", self.kernel_init, shape, 1, "features")
        (y,) = columns(x, [kernel], self.sequence_parallel)
        if not self.use_bias:
            return y
        zeros = nn.initializers.zeros
        return y + cut_param(self, "bias", zeros, (self.features,), 0, "features")


class ColumnKernel(nn.Module):
    """The kernel of a `ColumnDense` by itself, for `columns`.

    Attributes:
      features: how many columns there are on all ranks together; a multiple of their number.
      kernel_init: of the kernel, `[width, features]`.
    """

    features: int
    kernel_init: nn.initializers.Initializer = NORMAL

    @nn.compact
    def __call__(self, width: int) -> jax.Array:
        """This rank's columns, `[width, features]`.

        Raises:
          ConfigError: the ranks do not divide the features.
        """
        shape = (width, self.features)
        return cut_param(self, "kernel", self.kernel_init, shape, 1, "features")


class RowDense(nn.Module):
    """`x @ kernel + bias`, of which each rank computes a term from the features that it has.

    Attributes:
      features: how many come out.
      use_bias: whether a bias is added, to the sum.
      sequence_parallel: whether what comes out is cut along time.
      activation: what happens first, element by element, to one array or to several of one shape;
        backward computes it again.
      kernel_init: of the kernel, `[width, features]`; the bias starts at zero.
    """

    features: int
    use_bias: bool = True
    sequence_parallel: bool = False
    activation: Activation | None = None
    kernel_init: nn.initializers.Initializer = NORMAL
    takes_cut: ClassVar[bool] = True

    @nn.compact
    def __call__(self, *x: jax.Array) -> jax.Array:
        """`[..., width]` cut along the last dim to whole `[..., features]`.

        With `sequence_parallel`, `[batch, time, width]` to `[batch, time, features]` cut along
        time.
        """
        shape = (x[0].shape[-1] * tensor.size(), self.features)
        kernel = cut_param(self, "kernel", self.kernel_init, shape, 0, "width")
        y = rows(x, kernel, self.sequence_parallel, self.activation)
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return y + (tensor.fan_out(bias) if is_cut(self.sequence_parallel) else bias)


def columns(
    x: jax.Array, kernels: list[jax.Array], sequence_parallel: bool = False
) -> list[jax.Array]:
    """`x @ kernel` for kernels that are cut by columns; the ranks meet once for all of them.

    Args:
      x: whole, `[..., width]`; or cut along time, `[batch, time, width]`.
      kernels: this rank's columns of each, `[width, features]`.
      sequence_parallel: whether `x` is cut.

    Returns:
      `[..., features]` of each kernel, cut along the last dim.
    """
    if is_cut(sequence_parallel):
        return _gathered_columns(x, kernels)
    x = tensor.fan_out(x)
    return [product(x, kernel) for kernel in kernels]


def rows(
    x: tuple[jax.Array, ...],
    kernel: jax.Array,
    sequence_parallel: bool = False,
    activation: Activation | None = None,
) -> jax.Array:
    """`activation(*x) @ kernel` for a kernel that is cut by rows.

    Args:
      x: one array `[..., width]`, cut along the last dim; or what the activation takes.
      kernel: this rank's rows, `[width, features]`.
      sequence_parallel: whether the result, `[batch, time, features]`, is to be cut along time.
      activation: element by element, or None.
    """
    y = product(x[0], kernel) if activation is None else _activated(x, kernel, activation)
    return tensor.reduce_scatter(y, -2) if is_cut(sequence_parallel) else tensor.sum_up(y)


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`[..., width]` times `[width, features]`."""
    # A weight's gradient contracts over tokens. As one dim they need no transposed copy.
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], -1)


@functools.partial(recomputed, static_argnums=2)
def _activated(x: tuple[jax.Array, ...], kernel: jax.Array, activation: Activation) -> jax.Array:
    return product(activation(*x), kernel)


# Backward gathers again: what it keeps of the activations stays cut.
@recomputed
def _gathered_columns(x: jax.Array, kernels: list[jax.Array]) -> list[jax.Array]:
    x = tensor.all_gather(x, -2)
    return [product(x, kernel) for kernel in kernels]
