"""GPT-2 as Hugging Face has it (`GPT2LMHeadModel`), and `models.gpt`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxpipe.convert.rules import Rule, check_known, fused_qkv, same, split_qkv, turned
from jaxpipe.models import GPTConfig

BUFFERS = (".attn.bias", ".attn.masked_bias")  # masks that old files have among the weights


def config_of(theirs: Mapping[str, Any]) -> GPTConfig:
    """The sizes of a model, from its `config.json`.

    Raises:
      ConvertError: it is a GPT-2 that `models.gpt` is not.
    """
    width, inner = theirs["n_embd"], theirs.get("n_inner") or 4 * theirs["n_embd"]
    wanted: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "activation_function": (
            theirs.get("activation_function", "gelu_new"), ("gelu_new", "gelu_pytorch_tanh"),
        ),
        "scale_attn_weights": (theirs.get("scale_attn_weights", True), (True,)),
        "scale_attn_by_inverse_layer_idx": (
            theirs.get("scale_attn_by_inverse_layer_idx", False), (False,),
        ),
        "add_cross_attention": (theirs.get("add_cross_attention", False), (False,)),
        "n_inner % n_embd": (inner % width, (0,)),
    }  # fmt: skip
    check_known(wanted, "jaxpipe.models.gpt")
    return GPTConfig(
        vocab_size=theirs["vocab_size"], width=width, num_layers=theirs["n_layer"],
        num_heads=theirs["n_head"], sequence_length=theirs["n_positions"],
        mlp_ratio=inner // width, norm_eps=theirs.get("layer_norm_epsilon", 1e-5),
        tied=theirs.get("tie_word_embeddings", True),
    )  # fmt: skip


def json_of(config: GPTConfig) -> dict[str, Any]:
    """A `config.json` for a model of these sizes."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_embd": config.width,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_positions": config.sequence_length,
        "n_ctx": config.sequence_length,
        "n_inner": config.mlp_ratio * config.width,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": "gelu_new",
        "tie_word_embeddings": config.tied,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def rules(config: GPTConfig, names: list[str]) -> list[Rule]:
    """How each leaf is made, given the names of the model's layers."""
    if config.tied:
        token, position, *blocks, norm, _ = names
        found = [
            same(token, "embedding", "transformer.wte.weight"),
            same(position, "position", "transformer.wpe.weight"),
            *_norm(norm, "", "transformer.ln_f"),
        ]
    else:
        embed, *blocks, head = names
        found = [
            same(embed, "token", "transformer.wte.weight"),
            same(embed, "position", "transformer.wpe.weight"),
            *_norm(head, "norm.", "transformer.ln_f"),
            turned(head, "logits.kernel", "lm_head.weight"),
        ]
    for i, block in enumerate(blocks):
        found += _block(block, f"transformer.h.{i}", config)
    return found


def _block(layer: str, theirs: str, config: GPTConfig) -> list[Rule]:
    heads, features = config.num_heads, config.width // config.num_heads
    fuse = lambda t: fused_qkv(np.split(t[0], 3, axis=-1), heads, features)
    split = lambda leaf: [np.concatenate(split_qkv(leaf, heads, features), axis=-1)]
    attention = [
        Rule(layer, ("attention", "qkv", ours), (f"{theirs}.attn.c_attn.{name}",), fuse, split)
        for ours, name in (("kernel", "weight"), ("bias", "bias"))
    ]
    # Their `Conv1D` has `[in, out]`, as we do.
    dense = {"attention.out": "attn.c_proj", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}
    return [
        *_norm(layer, "attention_norm.", f"{theirs}.ln_1"),
        *attention,
        *_norm(layer, "mlp_norm.", f"{theirs}.ln_2"),
        *(
            same(layer, f"{ours}.{leaf}", f"{theirs}.{name}.{tensor}")
            for ours, name in dense.items()
            for leaf, tensor in (("kernel", "weight"), ("bias", "bias"))
        ),
    ]


def _norm(layer: str, path: str, theirs: str) -> list[Rule]:
    return [
        same(layer, f"{path}scale", f"{theirs}.weight"),
        same(layer, f"{path}bias", f"{theirs}.bias"),
    ]
