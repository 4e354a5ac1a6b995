"""The packages that only some data need; `pip install 'jaxpipe[data]'` brings them."""

import importlib
import importlib.util
from collections.abc import Iterator
from typing import Any

from jaxpipe.errors import DataError

_OF_SOURCES = {"parquet": "pyarrow", "arrayrecord": "array_record", "huggingface": "datasets"}
_INSTALL = "pip install 'jaxpipe[data]'"


def needed(module: str) -> Any:
    """A module of such a package.

    Raises:
      DataError: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(
            f"{module.partition('.')[0]} is not installed, and these data need it: {_INSTALL}"
            f" ({error})."
        ) from None


def missing(source: str, tokenizer: str | None) -> Iterator[str]:
    """What settings of data need and this Python does not have, a line each; imports nothing.

    Args:
      source: of the data.
      tokenizer: that makes the tokens, if one has to.
    """
    wanted = [("source", source, _OF_SOURCES.get(source))]
    if tokenizer not in (None, "bytes"):
        wanted.append(("tokenizer", tokenizer, "tokenizers"))
    for field, got, package in wanted:
        if package is not None and importlib.util.find_spec(package) is None:
            yield (
                f"data.{field}: got {got!r}, and the package {package} is not installed;"
                f" {_INSTALL}."
            )
