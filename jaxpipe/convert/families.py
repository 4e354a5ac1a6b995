"""The models that can be converted."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxpipe.convert import gpt2, llama
from jaxpipe.convert.rules import Rule, padded
from jaxpipe.errors import ConvertError, nearest
from jaxpipe.layers import build_layers
from jaxpipe.models import GPTConfig, LlamaConfig, ViTConfig
from jaxpipe.models import gpt as gpt_layers
from jaxpipe.models import llama as llama_layers


class Family(NamedTuple):
    """A family of models: ours and theirs.

    Attributes:
      name: theirs, `model_type` in `config.json`.
      config: our class of sizes.
      layers: from sizes to the list of layers.
      config_of: from their `config.json` to our sizes.
      json_of: the way back.
      rules_of: from sizes and names of layers to how each leaf is made.
      buffers: endings of names in their files that are no weights.
      prefix: what names in their files may lack.
    """

    name: str
    config: Any
    layers: Callable[[Any], Any]
    config_of: Callable[[Mapping[str, Any]], Any]
    json_of: Callable[[Any], dict[str, Any]]
    rules_of: Callable[[Any, list[str]], list[Rule]]
    buffers: tuple[str, ...]
    prefix: str

    def rules(self, config: Any, vocab_size: int | None = None) -> list[Rule]:
        """How each leaf of a model is made.

        Args:
          config: its sizes.
          vocab_size: how many ids their files have, if the model has room for more: the rest are
            zeros.
        """
        found = self.rules_of(config, [layer.name for layer in build_layers(self.layers(config))])
        if vocab_size is None or vocab_size == config.vocab_size:
            return found
        size = config.vocab_size
        dims = {"embedding": 0, "token": 0, "kernel": 1}
        is_vocabulary = lambda rule: rule.tensors[0].endswith(
            ("wte.weight", "embed_tokens.weight", "lm_head.weight")
        )
        return [
            padded(rule, size, dims[rule.path[-1]], vocab_size) if is_vocabulary(rule) else rule
            for rule in found
        ]


FAMILIES = {
    "gpt2": Family(
        "gpt2", GPTConfig, gpt_layers, gpt2.config_of, gpt2.json_of, gpt2.rules, gpt2.BUFFERS,
        "transformer.",
    ),
    "llama": Family(
        "llama", LlamaConfig, llama_layers, llama.config_of, llama.json_of, llama.rules,
        llama.BUFFERS, "model.",
    ),
}  # fmt: skip


def family_of(model: Any) -> Family:
    """The family of a model, by its sizes or by the name of its `model_type`.

    Raises:
      ConvertError: there is none.
    """
    for family in FAMILIES.values():
        if model == family.name or isinstance(model, family.config):
            return family
    raise ConvertError(f"cannot convert {model!r}: {nearest(str(model), FAMILIES)}")


def describe_model(config: Any) -> dict[str, Any]:
    """A model's sizes, for the metadata of a checkpoint."""
    name = "vit" if isinstance(config, ViTConfig) else family_of(config).name
    return {"family": name, **dataclasses.asdict(config)}


def described_model(metadata: Mapping[str, Any], where: Path) -> Any:
    """The sizes that the metadata of a checkpoint tells, a `GPTConfig` or `LlamaConfig`.

    Args:
      metadata: of the checkpoint.
      where: the checkpoint, for messages.

    Raises:
      ConvertError: it tells none.
    """
    told = dict(metadata.get("model") or {})
    if "family" not in told:
        raise ConvertError(
            f"{where} does not say which model it is of. Save it with metadata={{'model':"
            " jaxpipe.convert.describe_model(config)}, or call jaxpipe.convert.write_huggingface."
        )
    return family_of(told.pop("family")).config(**told)
