"""Names of arrays in a checkpoint: a word for each step of a tree path, joined by dots.

Words consist of letters, digits, `_` and `-`; whatever else a key has is written as `%` and its
code, so that no two paths have one name and none leaves the checkpoint's folder.
"""

import re
from collections.abc import Sequence
from typing import Any

_PLAIN = re.compile(r"[A-Za-z0-9_-]")


def word(key: Any) -> str:
    """A key of a tree path (of a dict, a sequence or a dataclass) as one word.

    >>> import jax
    >>> word(jax.tree_util.DictKey("a.b")), word(jax.tree_util.SequenceKey(3))
    ('a%2Eb', '3')
    """
    for attribute in ("name", "key", "idx"):
        if hasattr(key, attribute):
            text = str(getattr(key, attribute))
            break
    else:
        text = str(key)
    return spelled(text)


def spelled(text: str) -> str:
    """A text as one word.

    >>> spelled("a.b")
    'a%2Eb'
    """
    return "".join(c if _PLAIN.match(c) else f"%{ord(c):02X}" for c in text) or "%"


def dotted(words: Sequence[str]) -> str:
    """A whole name."""
    return ".".join(words)


def stem(layer: str) -> str:
    """What layers that differ by a number only have in common.

    >>> stem("07_Block"), stem("decoder.3"), stem("12")
    ('Block', 'decoder', 'layer')
    """
    return re.sub(r"[^A-Za-z]+", "_", re.sub(r"[0-9]+", "", layer)).strip("_") or "layer"


def in_order(layer: str) -> list[Any]:
    """A key to sort layers by, numbers as numbers.

    >>> sorted(["b10", "b9", "a"], key=in_order)
    ['a', 'b9', 'b10']
    """
    return [int(x) if x.isdigit() else x for x in re.split(r"([0-9]+)", layer)]
