"""Text from trained models: the library's generator, and the commands that use one."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

import jaxpipe as jp
from jaxpipe import cli
from jaxpipe.cli.generate import Generate
from jaxpipe.config import (
    Config,
    DataConfig,
    MetricsConfig,
    ModelConfig,
    OptimizerConfig,
    PipelineConfig,
    RunConfig,
    TrainerConfig,
)
from jaxpipe.data import Bytes, train_subwords
from jaxpipe.errors import BatchError, ConvertError
from jaxpipe.generate import Characters, Generator
from jaxpipe.metrics import NoConsole
from jaxpipe.models import GPTConfig, LlamaConfig, gpt, llama
from jaxpipe.sampling import Sampling
from jaxpipe.sections import Sections
from jaxpipe.trained import Trained
from jaxpipe.trainer import run

LIMIT = 12
GPT = GPTConfig(vocab_size=20, width=8, num_layers=1, num_heads=2, sequence_length=LIMIT)
GREEDY = Sampling(temperature=0)


def generator_of(layers: Any) -> Generator:
    model = jp.PipelineModule(layers, jp.nn.cross_entropy)
    engine = jp.initialize(model, mesh=jp.make_mesh(), num_microbatches=1)
    tokens = np.zeros((1, 4), np.int32)
    state = engine.init(jax.random.key(0), dict(inputs=tokens, targets=tokens))
    params = jax.tree.map(lambda x: 30 * x, state.params)
    return Generator(engine, params, tokens_per_call=3)


@pytest.fixture(scope="module")
def gpt_generator() -> Generator:
    return generator_of(gpt(GPT))


def test_texts_of_several_lengths_go_on_as_each_would_alone(gpt_generator: Generator):
    prompts = [[3, 4, 5], [7], [9, 2, 3, 1, 0]]
    together = gpt_generator(prompts, 7, sampling=GREEDY)
    assert [len(text) for text in together] == [7, 7, 7]
    assert together == [gpt_generator([prompt], 7, sampling=GREEDY)[0] for prompt in prompts]
    draw = lambda seed: gpt_generator(prompts, 7, sampling=Sampling(9.0, seed=seed))
    drawn = [draw(seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert max(max(text) for text in gpt_generator(prompts, 7, sampling=Sampling(num_ids=4))) < 4


def test_a_text_ends_with_its_end(gpt_generator: Generator):
    [free] = gpt_generator([[3, 4, 5]], 7, sampling=GREEDY)
    end = free[2]
    steps = list(gpt_generator.stream([[3, 4, 5], [7]], 7, sampling=GREEDY, end=end))
    first = [tokens[0] for tokens in steps]
    place = free.index(end)
    assert first[: place + 1] == free[: place + 1]
    assert set(first[place + 1 :]) <= {None}


def test_positions_end_where_they_are_learned(gpt_generator: Generator):
    prompt = [1, 2, 3, 4]
    assert len(gpt_generator([prompt], LIMIT - 3, sampling=GREEDY)[0]) == LIMIT - 3
    with pytest.raises(BatchError, match=rf"need {LIMIT + 1} positions.* at most {LIMIT - 3}, or"):
        gpt_generator.stream([prompt], LIMIT - 2)
    with pytest.raises(BatchError, match="a prompt has 13 tokens, and the model has learned 12"):
        gpt_generator.stream([[0] * 13], 1, when_full="forget")
    # It goes on from the later half of what it had in view.
    [text] = gpt_generator([prompt], 20, sampling=GREEDY, when_full="forget")
    seen = (prompt + text)[: LIMIT + 1]
    [more] = gpt_generator([seen[-LIMIT // 2 :]], LIMIT // 2, sampling=GREEDY)
    assert text[LIMIT - 3 :][: len(more)] == more
    # Rotations have no end.
    config = LlamaConfig(vocab_size=20, width=8, num_layers=1, num_heads=2, num_kv_heads=1)
    assert len(generator_of(llama(config))([prompt], 30, sampling=GREEDY)[0]) == 30


@pytest.mark.parametrize(
    ("prompts", "count", "part"),
    [
        ([], 1, "got 0 prompts"),
        ([[1], []], 1, r"prompts of \[1, 0\] tokens"),
        ([[1], [2, 20]], 1, "prompt 1 holds the id 20, and the model knows 0 <= id < 20"),
        ([[1]], 0, "max_new_tokens: got 0"),
    ],
)
def test_prompts_that_cannot_be_gone_on_with_are_refused(
    gpt_generator: Generator, prompts: Any, count: int, part: str
):
    with pytest.raises(BatchError, match=part):
        gpt_generator.stream(prompts, count)


def test_half_characters_never_show(tmp_path: Path):
    text = "naïve — 数学, 🎉!"
    subwords = train_subwords([text * 3], 270, tmp_path / "tokenizer.json")
    for tokenizer in (Bytes(), subwords):
        characters = Characters(tokenizer)
        pieces = [characters.add(token) for token in tokenizer.encode([text])[0]]
        assert "".join(pieces) + characters.rest() == text
        assert not any("\ufffd" in piece for piece in pieces)
    # Bytes that are no text are not waited for without end, nor lost.
    characters = Characters(Bytes())
    pieces = [characters.add(token) for token in b"a\xff\xff\xff\xff\xff\xff\xff\xff\xffb"]
    assert "".join(pieces).startswith("a\ufffd\ufffd")
    assert ("".join(pieces) + characters.rest()).endswith("b")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two steps, with a tokenizer that it has learnt."""
    folder = tmp_path_factory.mktemp("trained")
    for i in range(40):
        (folder / f"m{i}.txt").write_text(f"def f{i}(x):\n    return x + {i**3}\n" * 20)
    config = Config(
        model=ModelConfig(layers=1, width=16, heads=2),
        data=DataConfig(
            path=str(folder),
            pattern="m*.txt",
            tokenizer="train",
            vocab_size=280,
            sequence_length=16,
        ),
        optimizer=OptimizerConfig(warmup_steps=1),
        pipeline=PipelineConfig(ranks=2, microbatches=2),
        trainer=TrainerConfig(steps=2, batch_size=4, eval_batches=2, checkpoint_interval=1),
        metrics=MetricsConfig(timeline=False),
        run=RunConfig(name="run", directory=str(folder / "runs")),
    )
    run(config, console=NoConsole())
    return folder / "runs" / "run"


def ended(capsys: Any, *argv: str) -> tuple[int, str, str]:
    code = cli.main(argv)
    return code, *capsys.readouterr()


def test_generate_goes_on_with_a_prompt(trained: Path, capsys: Any, tmp_path: Path):
    prompt = "def f7(x):"
    options = ["--prompt", prompt, "--max-tokens", "20", "--seed", "3"]
    code, text, said = ended(capsys, "generate", str(trained), *options)
    assert code == 0
    assert text.startswith(prompt)
    assert "step_00000002" in said and "positions" in said and "tokens; the first after" in said
    # The same of a copied checkpoint, on more ranks, beside others, from a file.
    checkpoint = shutil.copytree(
        trained / "checkpoints" / "step_00000002", tmp_path / "step_00000002"
    )
    file = tmp_path / "prompt.txt"
    file.write_text("return")
    again = ["--ranks", "2", "--tokenizer", str(trained), "--prompt-file", str(file)]
    code, texts, _ = ended(capsys, "generate", str(checkpoint), *options, *again)
    assert code == 0
    lines = [line.split("| ", 1) for line in texts.removesuffix("\n").split("\n")]
    first, second = ("\n".join(line for of, line in lines if of == number) for number in "12")
    assert first == text.removesuffix("\n").removesuffix("\n")
    assert second.startswith("return")
    code, _, said = ended(capsys, "generate", str(checkpoint), *options)
    assert code == 2 and "--tokenizer FILE" in said
    code, _, said = ended(capsys, "generate", str(trained), "--step", "7")
    assert code == 2 and "no checkpoint of step 7" in said and "[1, 2]" in said


def test_several_texts_come_line_by_line(capsys: Any):
    sections, seen, doing = Sections(), [], []

    def stream(prompts: Any, *_: Any, **options: Any) -> Iterator[list[int | None]]:
        given: list[list[int | None]] = [[*b"12"], [*b"\n3"], [*b"y\n"], [None, *b"z"]]
        assert [bytes(prompt) for prompt in prompts] == [b"a = ", b"b = "]
        for tokens in given:
            doing.append(sections.current and sections.current.name)
            yield tokens
            seen.append(capsys.readouterr().out)

    generator: Any = SimpleNamespace(stream=stream, max_positions=None, tokens_per_call=1)
    write = Generate(Path("run"), max_tokens=4)._write
    write(generator, Bytes(), ["a = ", "b = "], Sampling(), time.monotonic(), sections)
    assert seen == ["", "1| a = 1\n", "2| b = 23\n", ""]
    assert capsys.readouterr().out == "1| y\n2| z\n"
    assert doing == ["compile", None, None, None]


def test_only_language_models_generate(tmp_path: Path):
    images = Config(model=ModelConfig(network="vit"))
    classifier = Trained(tmp_path, 1, {}, images)
    with pytest.raises(ConvertError, match="vit, which reads images"):
        classifier.check_reads_tokens()


def test_a_learnt_tokenizer_goes_along_to_other_libraries(
    trained: Path, capsys: Any, tmp_path: Path
):
    out = tmp_path / "out"
    code, _, said = ended(capsys, "export", str(trained), "--to", "huggingface", "--out", str(out))
    assert code == 0, said
    assert (out / "tokenizer.json").read_bytes() == (trained / "tokenizer.json").read_bytes()


def test_eval_says_what_training_said(trained: Path, capsys: Any):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    [want] = [line["held_out_loss"] for line in lines if line.get("held_out_loss") is not None][-1:]
    code, out, _ = ended(capsys, "eval", str(trained), "--json", "--pipeline.ranks", "1")
    found = json.loads(out)
    assert code == 0
    np.testing.assert_allclose(found["loss"], want, rtol=1e-5)
    np.testing.assert_allclose(found["perplexity"], np.exp(found["loss"]))
    assert found["step"] == 2 and found["targets"] > 0 and "bits_per_byte" not in found
    # Other data become tokens as those of the run did.
    other = trained.parents[1] / "m1.txt"
    code, out, _ = ended(
        capsys, "eval", str(trained / "checkpoints"), "--step", "1", "--data.held-out", str(other)
    )
    assert code == 0
    assert "after step 1\n" in out and "perplexity: " in out
