"""Parameters to start from: those of another run, or of a model of another library."""

import dataclasses
from pathlib import Path
from typing import Any

import yaml

from jaxpipe.build import model_sizes
from jaxpipe.checkpoint import Checkpoints, checkpoint_below, read_manifest
from jaxpipe.config import Config
from jaxpipe.convert import describe_model
from jaxpipe.errors import ConfigError
from jaxpipe.models import GPTConfig, LlamaConfig

PyTree = Any

# Sizes of a model, and the fields that say them; the others may differ.
_FIELDS = {
    "vocab_size": "vocab_size",
    "num_classes": "classes",
    "patch_size": "patch_size",
    "pooling": "pooling",
    "width": "width",
    "num_layers": "layers",
    "num_heads": "heads",
    "num_kv_heads": "kv_heads",
    "hidden": "hidden",
    "mlp_ratio": "hidden",
    "sequence_length": "positions",
    "rotary_theta": "rotary_theta",
    "norm_eps": "norm_eps",
    "tied": "tied",
}
_NETWORKS = {"gpt2": "gpt"}  # where transformers has another name


def start_of(config: Config) -> Path | None:
    """The checkpoint that a run starts from, a folder `step_...`; None for fresh parameters.

    Raises:
      CheckpointError: there is none where `model.start_from` points.
      ConfigError: it is of another model; names every field that differs.
    """
    if config.model.start_from is None:
        return None
    path = checkpoint_below(Path(config.model.start_from))
    told = dict(read_manifest(path).metadata.get("model") or {})
    ours = describe_model(model_sizes(config))
    problems = list(_differences(ours, told)) if "family" in told else []
    if problems:
        raise ConfigError("\n".join(problems))
    return path


def start_params(path: Path, like: PyTree) -> PyTree:
    """The parameters of a checkpoint, on the mesh.

    Args:
      path: of the checkpoint, from `start_of`.
      like: placed parameters, abstract, as in `engine.abstract_state(batch).params`; floats become
        of their dtypes.

    Raises:
      CheckpointError: they do not fit; names every misfit. Or they are damaged.
    """
    with Checkpoints(path.parent) as checkpoints:
        return checkpoints.restore(read_manifest(path).step, like, part="params", cast=True)


def settings_for(sizes: GPTConfig | LlamaConfig, start_from: Path, tokenizer: Path | None) -> str:
    """The lines of a configuration, in YAML, that trains on from a checkpoint of such a model.

    >>> print(settings_for(LlamaConfig(num_layers=2), Path("here"), None))
    model:
      network: llama
      vocab_size: 256
      width: 256
      layers: 2
      heads: 4
      kv_heads: 2
      hidden: 704
      rotary_theta: 10000.0
      norm_eps: 1.0e-05
      tied: false
      start_from: here
    <BLANKLINE>
    """
    network = "gpt" if isinstance(sizes, GPTConfig) else "llama"
    fields = _in_fields(dataclasses.asdict(sizes))
    lines: dict[str, Any] = {"model": {"network": network, **fields, "start_from": str(start_from)}}
    if tokenizer is not None:
        lines["data"] = {"tokenizer": str(tokenizer)}
    return yaml.safe_dump(lines, sort_keys=False)


def _in_fields(sizes: dict[str, Any]) -> dict[str, Any]:
    """Sizes of a model as the fields of a `ModelConfig`."""
    found = {_FIELDS[name]: value for name, value in sizes.items() if name in _FIELDS}
    if "mlp_ratio" in sizes:
        found["hidden"] = sizes["mlp_ratio"] * sizes["width"]
    return found


def _differences(ours: dict[str, Any], told: dict[str, Any]) -> list[str]:
    """What a configuration says otherwise than a checkpoint."""
    networks = [_NETWORKS.get(name, name) for name in (ours["family"], told["family"])]
    say = lambda field, got, has: (
        f"model.{field}: got {got!r}, the checkpoint in model.start_from has {has!r}."
    )
    if networks[0] != networks[1]:
        return [say("network", *networks)]
    here, there = _in_fields(ours), _in_fields(told)
    return [
        say(name, here[name], there[name])
        for name in here
        if name in there and here[name] != there[name]
    ]
