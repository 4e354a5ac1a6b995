"""What a layer is to everything above: a name, a kind, and two pure functions."""

import dataclasses
import re
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax

from jaxpipe.cache import Cache, CacheSpecs
from jaxpipe.layers.boxes import unboxed

PyTree = Any
SideInputs = Mapping[str, PyTree]
Init = Callable[[jax.Array, PyTree, SideInputs], PyTree]
Apply = Callable[[PyTree, PyTree, SideInputs, jax.Array | None, bool], PyTree]
Decode = Callable[[PyTree, PyTree, SideInputs, jax.Array, Cache | None], PyTree]


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """A layer, whatever library it was written in.

    Attributes:
      index: its place in the model, from 0.
      name: unique in the model; the key of its parameters in every logical tree.
      type_name: the class or function it was made from; what `type:REGEX` matches.
      kind: equal for layers that run the same code; their stages share one compiled branch.
      recipe: equal, beside `kind`, for layers whose fresh parameters are the same function of key
        and input.
      make: `(key, x, side inputs) -> params`, some perhaps in Flax's boxes; `x` may be abstract
        inside `jax.eval_shape`.
      apply: `(params, x, side inputs, key or None, train) -> y`.
      decode: `(params, x, side inputs, positions, cache or None) -> y`, or `-> (y, cache)` with a
        cache: the same of tokens that follow others.
      batch_inputs: the fields of the batch that `apply` gets besides `x`.
      owner: the name of the layer that holds the parameters: its own, or for a tied layer the
        first layer of its tie.
      frozen: which leaves get no gradient: all, none, or those whose path matches a pattern.
      given: the parameters a ready-made NNX module came with, or None.
      takes_cut: whether its input comes cut over the `tensor` axis, where that has several ranks;
        None for a `forward_fn` that does not say.
      init_cache: `(abstract x, capacity) -> {name: abstract array}`, what it remembers of earlier
        positions; None for a layer whose outputs depend on their own position alone.
      max_positions: how many positions it knows, or None where there is no end.
    """

    index: int
    name: str
    type_name: str
    kind: Hashable
    recipe: Hashable
    make: Init
    apply: Apply
    decode: Decode
    batch_inputs: tuple[str, ...] = ()
    owner: str = ""
    frozen: bool | str = False
    given: PyTree | None = None
    takes_cut: bool | None = False
    init_cache: Callable[[PyTree, int], CacheSpecs] | None = None
    max_positions: int | None = None

    def __repr__(self) -> str:
        return f"Layer({self.name!r})"

    def init(self, key: jax.Array, x: PyTree, side: SideInputs) -> PyTree:
        """Fresh parameters, whole: `(key, x, side inputs) -> params`."""
        return unboxed(self.make(key, x, side))

    @property
    def is_tied(self) -> bool:
        """Whether the parameters belong to an earlier layer."""
        return self.owner != self.name

    def side_inputs(self, batch: Mapping[str, PyTree]) -> dict[str, PyTree]:
        """The fields of `batch` that this layer asks for."""
        return {field: batch[field] for field in self.batch_inputs}

    def is_frozen(self, path: tuple[Any, ...]) -> bool:
        """Whether the leaf at this key path of the layer's parameters gets no gradient."""
        if isinstance(self.frozen, bool):
            return self.frozen
        return (
            re.search(self.frozen, jax.tree_util.keystr(path, simple=True, separator="/"))
            is not None
        )


class Identity:
    """A hashable stand-in for a thing that cannot be compared: equal to itself only."""

    def __init__(self, thing: object):
        self.thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and self.thing is other.thing

    def __hash__(self) -> int:
        return id(self.thing)


def hashable(thing: object) -> Hashable:
    """A key that tells `thing` from others: its type and value, or its identity alone."""
    try:
        hash(thing)
    except TypeError:
        return Identity(thing)
    return type(thing), thing  # 2 == 2.0 == np.int8(2), yet functions of them differ
