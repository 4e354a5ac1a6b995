"""Folders of Hugging Face's `transformers`: `config.json` and files of tensors."""

import functools
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxpipe.checkpoint import LogicalTree
from jaxpipe.convert.families import family_of
from jaxpipe.convert.rules import Rule
from jaxpipe.convert.tensors import TensorFiles, write_files
from jaxpipe.data import TOKENIZER_FILE
from jaxpipe.errors import ConvertError, first_few
from jaxpipe.losses import cross_entropy
from jaxpipe.model import PipelineModule


class Found(NamedTuple):
    """A model that was read.

    Attributes:
      config: its sizes, a `GPTConfig` or `LlamaConfig`.
      params: its parameters, which are read as they are asked for.
    """

    config: Any
    params: LogicalTree


class _Leaf:
    """A parameter that is made of tensors when NumPy asks for it."""

    def __init__(
        self, rule: Rule, files: Mapping[str, np.ndarray], names: Mapping[str, str],
        shape: tuple[int, ...], dtype: np.dtype,
    ) -> None:  # fmt: skip
        self._rule, self._files, self._names = rule, files, names
        self.shape, self.dtype = shape, dtype

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        tensors = [self._files[self._names[name]] for name in self._rule.tensors]
        leaf = self._rule.to_leaf(tensors).astype(dtype or self.dtype)
        if leaf.shape != self.shape:
            have = ", ".join(
                f"{n} {t.shape}" for n, t in zip(self._rule.tensors, tensors, strict=True)
            )
            raise ConvertError(
                f"{self._rule.key} of {self.shape} cannot be made of {have}: config.json is of"
                " another model than the files."
            )
        return leaf


def write_huggingface(
    leaves: Mapping[str, np.ndarray], config: Any, folder: Path, *,
    dtype: str | None = None, vocab_size: int | None = None,
) -> None:  # fmt: skip
    """Writes a model for `transformers`, a layer at a time.

    Args:
      leaves: parameters by their names in a checkpoint, as `checkpoint.Leaves`.
      config: the model's sizes, a `GPTConfig` or `LlamaConfig`.
      folder: new or empty.
      dtype: floats are cast to it, `"bfloat16"` say; by default they stay as they are.
      vocab_size: how many ids to write, where the model has room for more than there are.

    Raises:
      ConvertError: the folder holds something, a parameter is missing, or another model's.
    """
    family, size = family_of(config), vocab_size or config.vocab_size
    if size > config.vocab_size:
        raise ConvertError(f"vocab_size={size}; the model has {config.vocab_size} ids.")
    rules = family.rules(config, size)
    missing = [rule.key for rule in rules if rule.key not in leaves]
    extra = sorted(
        {key for key in leaves if key.startswith("params.")} - {rule.key for rule in rules}
    )
    if missing or extra:
        raise ConvertError(
            f"the checkpoint is not of this {family.name}: missing {_listed(missing)}; extra"
            f" {_listed(extra)}."
        )
    by_layer: dict[str, list[Rule]] = {}
    for rule in rules:
        by_layer.setdefault(rule.layer, []).append(rule)
    make = lambda own: {
        name: tensor
        for rule in own
        for name, tensor in zip(rule.tensors, rule.to_tensors(leaves[rule.key]), strict=True)
    }
    layers = [functools.partial(make, own) for _, own in sorted(by_layer.items())]
    write_files(folder, layers, dtype)
    content = family.json_of(config) | {"vocab_size": size, "dtype": dtype or "float32"}
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_huggingface(
    folder: Path, *, dtype: str = "float32", vocab_size: int | None = None
) -> Found:
    """Reads what a model is; its parameters are read when they are saved or placed.

    Args:
      folder: with `config.json` and safetensors files.
      dtype: of the parameters.
      vocab_size: room for ids, if more than there are: a multiple of `tensor`, say. The rest are
        zeros.

    Raises:
      ConvertError: the folder has no such files, or the model is none that jaxpipe has; names every
        tensor that is missing or too much.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise ConvertError(f"{folder} has no config.json; expected a folder of transformers.")
    theirs = json.loads(file.read_text("utf-8"))
    family = family_of(theirs.get("model_type"))
    config = family.config_of(theirs)
    ids = config.vocab_size
    if vocab_size is not None:
        if vocab_size < ids:
            raise ConvertError(f"vocab_size={vocab_size}; the files have {ids} ids.")
        config = family.config(**(vars(config) | {"vocab_size": vocab_size}))
    files = TensorFiles(folder)
    rules = family.rules(config, ids)
    names = {_whole(name, family.prefix): name for name in files}
    wanted = {name for rule in rules for name in rule.tensors}
    missing = sorted(wanted - names.keys())
    extra = [n for n in sorted(names.keys() - wanted) if not n.endswith(family.buffers)]
    if config.tied:
        extra = [name for name in extra if name != "lm_head.weight"]
    if missing or extra:
        raise ConvertError(
            f"{folder} is not of this {family.name}: missing {_listed(missing)}; extra"
            f" {_listed(extra)}."
        )
    shapes = _shapes(family.layers(config))
    tree: dict[str, Any] = {}
    for rule in rules:
        *outer, last = (rule.layer, *rule.path)
        inside, shape = tree, shapes[rule.layer]
        for key in outer:
            inside = inside.setdefault(key, {})
        for key in rule.path:
            shape = shape[key]
        inside[last] = _Leaf(rule, files, names, tuple(shape.shape), jnp.dtype(dtype))
    return Found(config, LogicalTree(tree))


def copy_tokenizer(folder: Path, out: Path) -> Path | None:
    """Keeps a model's `tokenizer.json` in another folder; None where it has none.

    It is what `data.tokenizer` takes.
    """
    file = folder / TOKENIZER_FILE
    if not file.is_file():
        return None
    return Path(shutil.copyfile(file, out / TOKENIZER_FILE))


def _shapes(layers: Any) -> dict[str, Any]:
    """Abstract parameters of a model of tokens."""
    tokens = np.zeros((1, 1), np.int32)
    model = PipelineModule(layers, cross_entropy)
    return dict(model.outline({"inputs": tokens, "targets": tokens}).params)


def _whole(name: str, prefix: str) -> str:
    """A name as the whole model has it: files of the bare one lack the beginning."""
    return name if name.startswith((prefix, "lm_head.")) else prefix + name


def _listed(names: list[str]) -> str:
    return ", ".join(first_few(names)) or "nothing"
