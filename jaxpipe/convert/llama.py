"""Llama as Hugging Face has it (`LlamaForCausalLM`), and `models.llama`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxpipe.convert.rules import Rule, check_known, fused_qkv, same, split_qkv, turned
from jaxpipe.models import LlamaConfig

BUFFERS = (".rotary_emb.inv_freq",)  # that old files have among the weights


def config_of(theirs: Mapping[str, Any]) -> LlamaConfig:
    """The sizes of a model, from its `config.json`.

    Raises:
      ConvertError: it is a Llama that `models.llama` is not.
    """
    rope = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
    width, heads = theirs["hidden_size"], theirs["num_attention_heads"]
    wanted = {
        "rope_type": (rope.get("rope_type", rope.get("type", "default")), "default"),
        "hidden_act": (theirs.get("hidden_act", "silu"), "silu"),
        "attention_bias": (theirs.get("attention_bias", False), False),
        "mlp_bias": (theirs.get("mlp_bias", False), False),
        "head_dim": (theirs.get("head_dim") or width // heads, width // heads),
    }
    check_known(
        {name: (got, (known,)) for name, (got, known) in wanted.items()}, "jaxpipe.models.llama"
    )
    return LlamaConfig(
        vocab_size=theirs["vocab_size"], width=width, num_layers=theirs["num_hidden_layers"],
        num_heads=heads, num_kv_heads=theirs.get("num_key_value_heads") or heads,
        hidden=theirs["intermediate_size"],
        rotary_theta=rope.get("rope_theta", theirs.get("rope_theta", 10_000.0)),
        norm_eps=theirs["rms_norm_eps"], tied=theirs.get("tie_word_embeddings", False),
    )  # fmt: skip


def json_of(config: LlamaConfig) -> dict[str, Any]:
    """A `config.json` for a model of these sizes."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.hidden,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.width // config.num_heads,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rotary_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rotary_theta},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": config.tied,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def rules(config: LlamaConfig, names: list[str]) -> list[Rule]:
    """How each leaf is made, given the names of the model's layers."""
    if config.tied:
        token, *blocks, norm, _ = names
        found = [same(norm, "scale", "model.norm.weight")]
    else:
        token, *blocks, head = names
        found = [
            same(head, "norm.scale", "model.norm.weight"),
            turned(head, "logits.kernel", "lm_head.weight"),
        ]
    found.append(same(token, "embedding", "model.embed_tokens.weight"))
    for i, block in enumerate(blocks):
        found += _block(block, f"model.layers.{i}", config)
    return found


def _block(layer: str, theirs: str, config: LlamaConfig) -> list[Rule]:
    kv_heads, features = config.num_kv_heads, config.width // config.num_heads
    qkv = tuple(f"{theirs}.self_attn.{x}_proj.weight" for x in "qkv")
    fuse = lambda tensors: fused_qkv([t.T for t in tensors], kv_heads, features)
    split = lambda leaf: [np.ascontiguousarray(x.T) for x in split_qkv(leaf, kv_heads, features)]
    return [
        same(layer, "attention_norm.scale", f"{theirs}.input_layernorm.weight"),
        Rule(layer, ("attention", "qkv", "kernel"), qkv, fuse, split),
        turned(layer, "attention.out.kernel", f"{theirs}.self_attn.o_proj.weight"),
        same(layer, "mlp_norm.scale", f"{theirs}.post_attention_layernorm.weight"),
        *(
            turned(layer, f"mlp.{x}.kernel", f"{theirs}.mlp.{x}_proj.weight")
            for x in ("gate", "up", "down")
        ),
    ]
