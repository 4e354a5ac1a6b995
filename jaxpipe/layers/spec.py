"""How a user writes a layer down: a type and its arguments, built when they are needed."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxpipe.cache import CacheSpecs
from jaxpipe.layers.layer import PyTree


@dataclasses.dataclass(frozen=True)
class FunctionLayer:
    """A layer made of plain functions.

    Attributes:
      apply: `(params, x) -> y`, or `x -> y` without `init`. It may take side inputs by name,
        and `key` (a PRNG key, or None) and `train` where its signature has them.
      init: `(key, x) -> params` from an example input, or None for a layer without parameters.
        Parameters in boxes of `flax.linen.with_partitioning` are cut over the mesh as these say.
      name: as for `LayerSpec`.
      batch_inputs: as for `LayerSpec`.
      frozen: as for `LayerSpec`.
      init_cache: `(abstract x, capacity) -> {name: abstract array}`, what `apply` remembers of
        earlier positions when text is generated; see `jaxpipe.cache`.
    """

    apply: Callable[..., PyTree]
    init: Callable[..., PyTree] | None = None
    name: str | None = None
    batch_inputs: tuple[str, ...] = ()
    frozen: bool | str = False
    init_cache: Callable[[PyTree, int], CacheSpecs] | None = None


@dataclasses.dataclass(frozen=True, init=False, eq=False)
class LayerSpec:
    """A layer that is not built yet.

    Args:
      typename: a Flax linen or NNX module class, a plain function `f(x, ...)`, or a
        `FunctionLayer`.
      *args: passed on to the class, or to the function after `x`.
      name: the key of the layer's parameters; `03_Block` and the like by default.
      batch_inputs: fields of the batch that the layer takes as keyword arguments besides its input.
        It gets its microbatch's slice on whatever rank it runs.
      frozen: True for a layer whose parameters are not trained, or a regular expression on the
        paths of its leaves (`"bias|attention/.*"`). Frozen leaves cost no gradient work and no
        optimizer state.
      **kwargs: passed on. NNX classes get `rngs=` from the engine.

    A linen or NNX layer whose call takes `train` or `deterministic` is told which; randomness is
    the `dropout` stream. When text is generated, tokens come one after the other: a call that takes
    `positions` is then told them, int32 `[rows, time]`, and a class with a method `init_cache` gets
    its `cache` and gives `(y, cache)`; see `jaxpipe.cache`.

    >>> import flax.linen as nn
    >>> LayerSpec(nn.Dense, 8, use_bias=False)
    LayerSpec(Dense, 8, use_bias=False)
    """

    typename: Callable[..., Any] | FunctionLayer
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    name: str | None
    batch_inputs: tuple[str, ...]
    frozen: bool | str

    def __init__(
        self,
        typename: Callable[..., Any] | FunctionLayer,
        *args: Any,
        name: str | None = None,
        batch_inputs: tuple[str, ...] = (),
        frozen: bool | str = False,
        **kwargs: Any,
    ):
        fields = dict(typename=typename, args=args, kwargs=kwargs, name=name, frozen=frozen)
        for field, value in (fields | dict(batch_inputs=tuple(batch_inputs))).items():
            object.__setattr__(self, field, value)

    def __repr__(self) -> str:
        shown = [getattr(self.typename, "__name__", repr(self.typename)), *map(repr, self.args)]
        shown += [f"{k}={v!r}" for k, v in self.kwargs.items()]
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclasses.dataclass(frozen=True, init=False, eq=False, repr=False)
class TiedLayerSpec(LayerSpec):
    """A layer that shares its parameters with every other one of the same `key`.

    There is one logical parameter: it belongs to the first layer of the tie, gradients from all
    uses are summed, and it has one optimizer state.

    Args:
      key: names the tie.
      typename: as for `LayerSpec`; all layers of a tie must have parameters of the same shapes.
      forward_fn: what this use computes, `(module, x) -> y`, where it is not the module's call
        (`(params, x) -> y` for plain functions): an output projection that reuses an embedding is
        `forward_fn=lambda embed, x: embed.attend(x)`.
      *args: as for `LayerSpec`, and so are the keyword arguments.
    """

    key: str
    forward_fn: Callable[[Any, PyTree], PyTree] | None

    def __init__(
        self,
        key: str,
        typename: Callable[..., Any] | FunctionLayer,
        *args: Any,
        forward_fn: Callable[[Any, PyTree], PyTree] | None = None,
        **kwargs: Any,
    ):
        super().__init__(typename, *args, **kwargs)
        object.__setattr__(self, "key", key)
        object.__setattr__(self, "forward_fn", forward_fn)
