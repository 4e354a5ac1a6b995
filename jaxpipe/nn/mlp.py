"""MLPs of which each rank computes some of the hidden features."""

import flax.linen as nn
import jax

from jaxpipe.nn.dense import NORMAL, ColumnDense, ColumnKernel, RowDense, columns


class GeluMLP(nn.Module):
    """`GELU(x @ up) @ down`, with biases.

    Attributes:
      hidden: how many hidden features; a multiple of the ranks.
      sequence_parallel: whether activations come and go cut along time.
      kernel_init: of `up`, `[width, hidden]`.
      out_init: of `down`, `[hidden, width]`.
    """

    hidden: int
    sequence_parallel: bool = False
    kernel_init: nn.initializers.Initializer = NORMAL
    out_init: nn.initializers.Initializer = NORMAL

    @property
    def takes_cut(self) -> bool:
        """Whether its input comes cut over the `tensor` axis, where that has several ranks."""
        return self.sequence_parallel

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., width]` to the same.

        Raises:
          ConfigError: the ranks do not divide the hidden features.
        """
        up = ColumnDense(
            self.hidden,
            sequence_parallel=self.sequence_parallel,
            kernel_init=self.kernel_init,
            name="up",
        )
        down = RowDense(
            x.shape[-1],
            sequence_parallel=self.sequence_parallel,
            activation=jax.nn.gelu,
            kernel_init=self.out_init,
            name="down",
        )
        return down(up(x))


class SwiGLU(nn.Module):
    """`(SiLU(x @ gate) * (x @ up)) @ down`, without biases (arXiv:2002.05202).

    Attributes:
      hidden: how many hidden features; a multiple of the ranks.
      sequence_parallel: whether activations come and go cut along time.
      kernel_init: of `gate` and `up`, `[width, hidden]`.
      out_init: of `down`, `[hidden, width]`.
    """

    hidden: int
    sequence_parallel: bool = False
    kernel_init: nn.initializers.Initializer = NORMAL
    out_init: nn.initializers.Initializer = NORMAL

    @property
    def takes_cut(self) -> bool:
        """Whether its input comes cut over the `tensor` axis, where that has several ranks."""
        return self.sequence_parallel

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., width]` to the same.

        Raises:
          ConfigError: the ranks do not divide the hidden features.
        """
        width = x.shape[-1]
        kernels = [
            ColumnKernel(self.hidden, self.kernel_init, name=name)(width) for name in ("gate", "up")
        ]
        down = RowDense(
            width,
            use_bias=False,
            sequence_parallel=self.sequence_parallel,
            activation=_gated,
            kernel_init=self.out_init,
            name="down",
        )
        return down(*columns(x, kernels, self.sequence_parallel))


def _gated(gate: jax.Array, up: jax.Array) -> jax.Array:
    return jax.nn.silu(gate) * up
