"""How a leaf of ours and tensors of another library are made of each other."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxpipe.checkpoint import dotted, spelled
from jaxpipe.errors import ConvertError

Arrays = Sequence[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Rule:
    """A leaf, and the tensors that it consists of.

    Attributes:
      layer: of the leaf.
      path: of the leaf, within its layer.
      tensors: names of the others.
      to_leaf: from the tensors to the leaf.
      to_tensors: the way back.
    """

    layer: str
    path: tuple[str, ...]
    tensors: tuple[str, ...]
    to_leaf: Callable[[Arrays], np.ndarray]
    to_tensors: Callable[[np.ndarray], Arrays]

    @property
    def key(self) -> str:
        """The leaf's name in a checkpoint of parameters."""
        return dotted(["params", *map(spelled, (self.layer, *self.path))])


def same(layer: str, path: str, tensor: str) -> Rule:
    """A tensor that is the leaf."""
    return Rule(layer, tuple(path.split(".")), (tensor,), lambda t: t[0], lambda leaf: [leaf])


def turned(layer: str, path: str, tensor: str) -> Rule:
    """A matrix that is the leaf's transpose: PyTorch's `Linear` has `[out, in]`."""
    turn = lambda x: np.ascontiguousarray(x.T)
    return Rule(
        layer, tuple(path.split(".")), (tensor,), lambda t: turn(t[0]), lambda leaf: [turn(leaf)]
    )


def padded(rule: Rule, size: int, dim: int, ids: int) -> Rule:
    """The same, of a leaf with room for `size` ids along a dim and a tensor of `ids` rows."""

    def to_leaf(tensors: Arrays) -> np.ndarray:
        leaf = rule.to_leaf(tensors)
        more = [(0, size - leaf.shape[d] if d == dim else 0) for d in range(leaf.ndim)]
        return np.pad(leaf, more)

    def to_tensors(leaf: np.ndarray) -> Arrays:
        return [np.ascontiguousarray(tensor[:ids]) for tensor in rule.to_tensors(leaf)]

    return dataclasses.replace(rule, to_leaf=to_leaf, to_tensors=to_tensors)


def check_known(settings: Mapping[str, tuple[Any, tuple[Any, ...]]], model: str) -> None:
    """Raises unless each setting of a `config.json` is one that a model of ours has.

    Args:
      settings: {name: what it is, and what it may be}.
      model: ours.

    Raises:
      ConvertError: names the first that is not.
    """
    for name, (got, known) in settings.items():
        if got not in known:
            raise ConvertError(
                f"config.json has {name} = {got!r}; expected {known[0]!r}: no layer of"
                f" {model} computes that."
            )


def fused_qkv(x: Arrays, kv_heads: int, features: int) -> np.ndarray:
    """Columns of queries, keys and values, `[.., columns]` each, as `nn.Attention` has them.

    Ours are grouped by the heads of keys: their queries, then the key, then the value.
    """
    groups = [part.reshape(*part.shape[:-1], kv_heads, -1, features) for part in x]
    joined = np.concatenate(groups, axis=-2)
    return joined.reshape(*joined.shape[:-3], -1)


def split_qkv(x: np.ndarray, kv_heads: int, features: int) -> list[np.ndarray]:
    """The way back: columns of queries, of keys, of values."""
    groups = x.reshape(*x.shape[:-1], kv_heads, -1, features)
    parts = groups[..., :-2, :], groups[..., -2:-1, :], groups[..., -1:, :]
    return [np.ascontiguousarray(part.reshape(*x.shape[:-1], -1)) for part in parts]
