"""Files of tensors (safetensors): one for each layer, and an index."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxpipe.checkpoint import Leaves
from jaxpipe.errors import ConvertError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def write_files(
    folder: Path, layers: Sequence[Callable[[], Mapping[str, np.ndarray]]], dtype: str | None = None
) -> None:
    """Writes tensors, as many at a time as one of `layers` makes, and an index of them.

    Args:
      folder: new or empty.
      layers: each makes tensors by name.
      dtype: floats are cast to it.

    Raises:
      ConvertError: the folder holds something.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ConvertError(f"{folder} is not empty; choose a folder that is, or a new one.")
    folder.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, str] = {}
    total = 0
    for i, make in enumerate(layers, 1):
        name = f"model-{i:05d}-of-{len(layers):05d}.safetensors"
        tensors = {key: _cast(value, dtype) for key, value in make().items()}
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    content = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_tensors(leaves: Leaves, folder: Path, dtype: str | None = None) -> None:
    """Writes the parameters of a checkpoint under their own names.

    Args:
      leaves: of the checkpoint.
      folder: new or empty.
      dtype: floats are cast to it.
    """
    by_layer: dict[str, list[str]] = {}
    for key in leaves:
        if key.startswith("params."):
            by_layer.setdefault(key.split(".")[1], []).append(key)
    bare = lambda key: key.removeprefix("params.")
    made = [
        lambda keys=keys: {bare(key): leaves[key] for key in keys}
        for _, keys in sorted(by_layer.items())
    ]
    write_files(folder, made, dtype)


class TensorFiles(Mapping[str, np.ndarray]):
    """The tensors in a folder of such files, each read when it is asked for.

    Raises:
      ConvertError: there are no such files, or not all that the index names.
    """

    def __init__(self, folder: Path) -> None:
        """Opens the files, and reads no tensor."""
        if (folder / INDEX).is_file():
            names = set(json.loads((folder / INDEX).read_text("utf-8"))["weight_map"].values())
        else:
            names = {SINGLE}
        self._files: dict[str, Any] = {}
        for name in sorted(names):
            path = folder / name
            if Path(name).name != name or not path.is_file():
                raise ConvertError(
                    f"{folder} has no file {name}; expected {SINGLE}, or {INDEX} and the files"
                    " that it names. Other formats are not read: they may run code."
                )
            try:
                file = safe_open(path, framework="np")
            except SafetensorError as error:
                raise ConvertError(f"{path} cannot be read: {error}.") from None
            self._files |= dict.fromkeys(file.keys(), file)

    def __getitem__(self, name: str) -> np.ndarray:
        """A tensor."""
        return self._files[name].get_tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, which is not read for this."""
        return tuple(self._files[name].get_slice(name).get_shape())

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _cast(value: np.ndarray, dtype: str | None) -> np.ndarray:
    is_float = jnp.issubdtype(value.dtype, jnp.floating)
    return np.ascontiguousarray(value.astype(jnp.dtype(dtype)) if dtype and is_float else value)
