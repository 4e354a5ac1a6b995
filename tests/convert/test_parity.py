"""Models of `transformers` and ours, with the same weights: the same logits and gradients."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxpipe as jp
from jaxpipe import nn
from jaxpipe.checkpoint import Leaves
from jaxpipe.convert import read_huggingface, write_huggingface
from jaxpipe.convert.families import family_of
from jaxpipe.models import gpt, llama

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VOCAB, TIME = 37, 12
LLAMA: dict[str, Any] = dict(
    vocab_size=VOCAB, hidden_size=32, intermediate_size=40, num_hidden_layers=3,
    num_attention_heads=4, max_position_embeddings=TIME,
)  # fmt: skip
GPT2: dict[str, Any] = dict(vocab_size=VOCAB, n_embd=32, n_layer=3, n_head=4, n_positions=TIME)
QUIET = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)


def models() -> dict[str, Any]:
    one = transformers
    return {
        "gpt2, tied": one.GPT2LMHeadModel(one.GPT2Config(**GPT2, **QUIET)),
        "gpt2": one.GPT2LMHeadModel(
            one.GPT2Config(**GPT2, **QUIET, tie_word_embeddings=False, n_inner=64)
        ),
        "llama": one.LlamaForCausalLM(one.LlamaConfig(**LLAMA)),
        "llama, grouped queries": one.LlamaForCausalLM(
            one.LlamaConfig(**LLAMA, num_key_value_heads=2, rms_norm_eps=1e-5)
        ),
        "llama, one key, tied": one.LlamaForCausalLM(
            one.LlamaConfig(**LLAMA, num_key_value_heads=1, tie_word_embeddings=True)
        ),
    }


NAMES = ["gpt2, tied", "gpt2", "llama", "llama, grouped queries", "llama, one key, tied"]


def random_model(name: str) -> Any:
    torch.manual_seed(0)
    model = models()[name].eval()
    with torch.no_grad():
        for tensor in model.parameters():  # biases and norms too
            tensor.add_(0.05 * torch.randn_like(tensor))
    return model


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("room", [None, 40])
def test_logits_and_gradients_are_theirs(tmp_path: Path, name: str, room: int | None):
    theirs = random_model(name)
    theirs.save_pretrained(tmp_path / "theirs")
    found = read_huggingface(tmp_path / "theirs", vocab_size=room)
    make: Any = {"gpt2": gpt, "llama": llama}[family_of(found.config).name]
    ours = jp.PipelineModule(make(found.config), nn.cross_entropy)
    ids = np.random.default_rng(0).integers(0, VOCAB, (4, TIME), np.int32)
    batch = dict(inputs=ids[:, :-1], targets=ids[:, 1:])
    params = jax.tree.map(np.asarray, dict(found.params.layers))

    tokens = torch.tensor(ids, dtype=torch.long)
    logits = theirs(tokens[:, :-1]).logits
    got = np.asarray(ours.apply(params, batch))
    np.testing.assert_allclose(got[..., :VOCAB], logits.detach().numpy(), atol=1e-4, rtol=0)
    if room is not None:
        return  # ids that nobody has take a share of the softmax

    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    # Gradients lie where parameters do: they go the way that those would go.
    value, grads = jax.value_and_grad(ours.loss)(params, batch)
    np.testing.assert_allclose(value, loss.item(), atol=1e-5)
    family = family_of(found.config)
    named = dict(theirs.named_parameters())
    seen = set()
    for rule in family.rules(found.config):
        leaf = grads[rule.layer]
        for key in rule.path:
            leaf = leaf[key]
        for tensor, own in zip(rule.tensors, rule.to_tensors(np.asarray(leaf)), strict=True):
            want = named[tensor].grad.numpy()
            np.testing.assert_allclose(own, want, atol=1e-4, rtol=0, err_msg=tensor)
            seen.add(tensor)
    assert seen == set(named) and len(seen) > 20


@pytest.mark.parametrize("name", NAMES)
def test_transformers_reads_what_we_write(tmp_path: Path, name: str):
    theirs = random_model(name)
    theirs.save_pretrained(tmp_path / "theirs")
    found = read_huggingface(tmp_path / "theirs", vocab_size=48)
    with jp.Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(0, {"params": found.params})
        path = checkpoints.path(0)
    write_huggingface(Leaves(path), found.config, tmp_path / "back", vocab_size=VOCAB)
    again = type(theirs).from_pretrained(tmp_path / "back")
    tokens = torch.arange(TIME)[None]
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, theirs(tokens).logits)
    before, after = theirs.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
