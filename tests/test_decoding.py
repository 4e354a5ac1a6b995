"""Decoding through a pipeline: each position's logits are those of the whole model at once."""

import dataclasses
import re
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optimised import Optimised

import jaxpipe as jp
from jaxpipe.decoding import Decoder, Sequences
from jaxpipe.errors import BatchError, ConfigError, LayerError
from jaxpipe.models import GPTConfig, LlamaConfig, gpt, llama
from jaxpipe.sampling import Sampling, sample

VOCAB, TIME = 32, 20
GPT = GPTConfig(vocab_size=VOCAB, width=16, num_layers=2, num_heads=2, sequence_length=TIME)
LLAMA = LlamaConfig(
    vocab_size=VOCAB, width=16, num_layers=2, num_heads=4, num_kv_heads=2, hidden=24
)
GREEDY = Sampling(temperature=0)


class Case(NamedTuple):
    engine: jp.Engine
    params: Any
    tokens: np.ndarray  # [sequences, time]


def engine_of(layers: Any, **options: Any) -> jp.Engine:
    mesh = jp.make_mesh(**{axis: options.pop(axis, 1) for axis in ("pipe", "data", "tensor")})
    model = jp.PipelineModule(layers, jp.nn.cross_entropy)
    return jp.initialize(model, mesh=mesh, num_microbatches=2, fill=float("nan"), **options)


def tokens_of(count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, VOCAB, (count, TIME)).astype(np.int32)


def case_of(layers: Any, count: int, **options: Any) -> Case:
    engine, tokens = engine_of(layers, **options), tokens_of(count)
    batch = dict(inputs=tokens, targets=tokens)
    engine.partition(batch)
    rng = np.random.default_rng(2)
    logical = jax.tree.map(
        lambda x: rng.normal(scale=0.3, size=x.shape).astype(x.dtype),
        jp.PipelineModule(layers, jp.nn.cross_entropy).outline(batch).params,
    )
    return Case(engine, engine.place(logical), tokens)


def logits_of(case: Case) -> np.ndarray:
    """Of the whole texts at once, `[sequences, time, vocabulary]`."""
    batch = dict(inputs=case.tokens, targets=case.tokens)
    state = dataclasses.replace(case.engine.abstract_state(batch), params=case.params)
    return np.asarray(case.engine.predict(state, batch))


def follow(case: Case, decoder: Decoder, *, pieces: int, steps: int) -> None:
    """Prompts of all lengths, then the rest of each text one by one: the logits are the model's."""
    count, logits = decoder.num_sequences, logits_of(case)
    rows, weights = np.arange(count), decoder.weights(case.params)
    lengths = (rows * 3) % 8 + 1
    prompts = np.where(np.arange(8) < lengths[:, None], case.tokens[:count, :8], 7)
    state, chosen = decoder.prefill(
        weights, prompts, lengths, GREEDY, pieces=pieces, gives_logits=True
    )
    for step in range(steps + 1):
        want = logits[rows, lengths + step - 1]
        np.testing.assert_allclose(np.asarray(chosen.logits)[:, 0], want, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(chosen.tokens[:, 0], want.argmax(-1))
        forced = case.tokens[rows, lengths + step].reshape(state.tokens.shape)
        state, chosen = decoder.decode(
            weights, state._replace(tokens=forced), GREEDY, gives_logits=True
        )


def run_on(case: Case, decoder: Decoder, calls: int, how: Sampling) -> np.ndarray:
    """What follows prompts of several lengths, `[sequences, tokens]`."""
    weights = decoder.weights(case.params)
    lengths = np.arange(decoder.num_sequences) % 3 + 2
    state, chosen = decoder.prefill(weights, case.tokens[:, :4], lengths, how)
    found = [chosen.tokens]
    for _ in range(calls):
        state, chosen = decoder.decode(weights, state, how, num_tokens=3)
        found.append(chosen.tokens)
    return np.concatenate(found, axis=1)


USUAL: dict[str, Any] = {
    "tied gpt, 2 ranks of 2": (
        gpt(dataclasses.replace(GPT, tied=True)), dict(pipe=2, tensor=2), (2, 1, 2)
    ),
    "tied llama, 2 chunks": (
        llama(dataclasses.replace(LLAMA, tied=True)),
        dict(pipe=2, data=2, schedule="interleaved"), (2, 1, 2),
    ),
}  # fmt: skip
MORE: dict[str, Any] = {
    "gpt": (gpt(GPT), dict(pipe=1), (1, 2, 2)),
    "llama, 4 ranks": (llama(LLAMA), dict(pipe=4), (4, 1, 1)),
}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in MORE]


@pytest.mark.parametrize("name", [*USUAL, *SLOW])
def test_logits_are_those_of_the_whole_text(name: str):
    layers, options, (groups, rows, pieces) = (USUAL | MORE)[name]
    count = groups * rows * options.get("data", 1)
    case = case_of(layers, max(4, count), **options)
    decoder = case.engine.decoder(num_microbatches=groups, rows=rows, capacity=13)
    follow(case, decoder, pieces=pieces, steps=3)


def test_what_is_drawn_does_not_depend_on_stages_and_microbatches():
    alone = case_of(gpt(GPT), 6)
    spread = case_of(gpt(GPT), 6, pipe=2)
    whole = alone.engine.decoder(num_microbatches=1, rows=6, capacity=12)
    decoder = spread.engine.decoder(num_microbatches=3, rows=2, capacity=12)
    for how in (GREEDY, Sampling(0.9, top_p=0.8, seed=3)):
        want = run_on(alone, whole, 2, how)
        np.testing.assert_array_equal(run_on(spread, decoder, 2, how), want)
    other = dataclasses.replace(how, seed=4)
    assert (run_on(spread, decoder, 2, other) != want).any()
    # One program for all: neither tokens nor temperatures compile anew.
    programs = [fn for key, fn in decoder._cache.items() if "program" in str(key)]
    assert [fn._cache_size() for fn in programs] == [1, 1]


def test_caches_are_updated_in_place():
    def compiled(groups: int) -> tuple[Decoder, Any]:
        case = case_of(gpt(GPT), 2, pipe=2)
        decoder = case.engine.decoder(num_microbatches=groups, rows=2, capacity=37)
        rows = np.ones((groups, 2), np.int32)
        state = Sequences(decoder.caches(), rows, rows, rows, rows, width=4, slot=4)
        return decoder, decoder.compiled(decoder.weights(case.params), state, num_tokens=3)

    (decoder, few), (_, many) = compiled(2), compiled(5)
    program = Optimised(few.as_text())
    cache = (2, 2, GPT.num_heads, 37, GPT.width // GPT.num_heads)
    assert {each.op for each in program.loop if cache in each.shapes} >= {"while", "fusion"}
    for each in program.everything:
        if cache in each.shapes and each.op == "fusion":
            assert "dynamic-update-slice" in each.name.replace("_", "-"), each.text
        assert not (each.op.startswith("copy") and cache in each.shapes), each.text
    memory = [made.memory_analysis() for made in (few, many)]
    assert memory[0].alias_size_in_bytes == decoder.bytes_of_caches
    # What a token takes beside the caches does not grow with the sequences that are under way.
    assert memory[1].temp_size_in_bytes - memory[0].temp_size_in_bytes < decoder.bytes_of_caches / 8


class Sum:
    """A layer of one's own: the sum of all that came before. It remembers one vector a sequence."""

    @staticmethod
    def layer() -> jp.FunctionLayer:
        def apply(x: jax.Array, *, cache: Any = None) -> Any:
            if cache is None:
                return jnp.cumsum(x, axis=1)
            x = jnp.where(cache.present[..., None], x, 0)
            total = cache["total"][:, None] + jnp.cumsum(x, axis=1)
            return total, cache.replace("total", total[:, -1])

        def init_cache(x: Any, capacity: int) -> dict[str, Any]:
            return dict(total=jax.ShapeDtypeStruct((x.shape[0], x.shape[2]), x.dtype))

        return jp.FunctionLayer(apply, init_cache=init_cache)


def test_a_layer_of_ones_own_says_what_it_remembers():
    class Embed(jp.nn.Embedding):
        def __call__(self, tokens: jax.Array, *, positions: jax.Array | None = None) -> jax.Array:
            index = jnp.arange(tokens.shape[1]) if positions is None else positions
            return super().__call__(tokens) + jnp.cos(index)[..., None]

    layers = [
        jp.LayerSpec(Embed, VOCAB, 8),
        Sum.layer(),
        jnp.tanh,
        jp.LayerSpec(jp.nn.ColumnDense, VOCAB),
    ]
    case = case_of(layers, 4, pipe=2)
    follow(case, case.engine.decoder(num_microbatches=2, rows=2, capacity=12), pieces=4, steps=2)


class MixesInSilence(nn.Module):
    """Has attention, and does not say that it remembers anything."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return jp.nn.Attention(2)(x)


def decoder_of(layers: Any) -> Decoder:
    engine = engine_of(layers)
    batch = dict(inputs=tokens_of(4), targets=tokens_of(4), segment_ids=tokens_of(4))
    engine.partition(batch)
    return engine.decoder(num_microbatches=1, rows=2, capacity=12)


def test_what_cannot_be_decoded_is_refused():
    with pytest.raises(BatchError, match=r"01_Block reads \['segment_ids'\].*packed=False"):
        decoder_of([gpt(GPT)[0], *gpt(GPT, packed=True)[1:]]).shapes  # noqa: B018
    with pytest.raises(LayerError, match=r"attention needs what came before.*init_cache"):
        decoder_of([gpt(GPT)[0], MixesInSilence(), gpt(GPT)[-1]]).shapes  # noqa: B018
    grows = lambda x, *, cache: (x, dataclasses.replace(cache, arrays=dict(a=x)))
    growing = jp.FunctionLayer(
        lambda x, cache=None: x if cache is None else grows(x, cache=cache),
        init_cache=lambda x, capacity: dict(a=x),
        name="growing",
    )
    with pytest.raises(LayerError, match=r"growing gives back a cache of .*cache\.append"):
        decoder_of([gpt(GPT)[0], growing, gpt(GPT)[-1]]).shapes  # noqa: B018
    decoder, ones = decoder_of(gpt(GPT)), np.ones(2, np.int32)
    with pytest.raises(BatchError, match="prompts of 16 tokens do not fit the 12 slots"):
        decoder.prefill({}, np.zeros((2, 16)), ones, GREEDY)
    with pytest.raises(BatchError, match="expected \\[2, time\\]"):
        decoder.prefill({}, np.zeros((3, 4)), ones, GREEDY)
    with pytest.raises(BatchError, match="prompts of 0 to 1 tokens"):
        decoder.prefill({}, np.zeros((2, 4)), np.arange(2), GREEDY)


def drawn(logits: np.ndarray, how: Sampling, count: int) -> np.ndarray:
    numbers = jnp.arange(count)
    rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (count, len(logits)))
    return np.asarray(jax.jit(sample)(rows, jnp.zeros(count, int), numbers, how.arrays))


def test_tokens_are_drawn_as_they_are_probable():
    probabilities = np.array([0.05, 0.4, 0.3, 0.2, 0.05])
    logits = np.log(probabilities)
    share = lambda how: np.bincount(drawn(logits, how, 20_000), minlength=5) / 20_000
    np.testing.assert_allclose(share(Sampling()), probabilities, atol=0.02)
    np.testing.assert_allclose(share(Sampling(top_p=0.6)), [0, 4 / 7, 3 / 7, 0, 0], atol=0.02)
    both = np.array([0, 4, 3, 0, 0]) ** 2 / 25
    np.testing.assert_allclose(share(Sampling(0.5, top_p=0.6)), both, atol=0.02)
    colder = probabilities**2 / (probabilities**2).sum()
    np.testing.assert_allclose(share(Sampling(0.5)), colder, atol=0.02)
    known = probabilities[:3] / probabilities[:3].sum()
    np.testing.assert_allclose(share(Sampling(num_ids=3)), [*known, 0, 0], atol=0.02)
    assert set(drawn(logits, Sampling(0), 9)) == set(drawn(logits, Sampling(top_p=1e-6), 9)) == {1}


@pytest.mark.parametrize(
    "wrong", [dict(temperature=-1), dict(top_p=0), dict(top_p=1.5), dict(num_ids=0)]
)
def test_a_sampling_that_means_nothing_is_refused(wrong: Any):
    [(name, value)] = wrong.items()
    with pytest.raises(ConfigError, match=re.escape(f"{name}: got {value}, expected")):
        Sampling(**wrong)
