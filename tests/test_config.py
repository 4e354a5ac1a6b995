"""Configurations: read from YAML, checked, written, compared, and given a folder."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from jaxpipe.config import (
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    PipelineConfig,
    RunConfig,
    TrainerConfig,
    by_field,
    choose,
    differences,
    parse,
    read,
    to_yaml,
    validate,
)
from jaxpipe.errors import ConfigError

SHIPPED = Path(__file__).parents[1] / "configs" / "gpt-stdlib.yaml"


def problems_of(action, *arguments):
    with pytest.raises(ConfigError) as caught:
        action(*arguments)
    return str(caught.value).splitlines()


def test_the_file_changes_fields_and_the_others_keep_their_defaults():
    config = parse("trainer:\n  steps: 7\npipeline: {partition: [0, 2, 10], remat: 2}\nmodel:\n")
    assert config == Config(
        trainer=TrainerConfig(steps=7), pipeline=PipelineConfig(partition=(0, 2, 10), remat=2)
    )
    assert parse("") == Config()


def test_the_shipped_file_names_and_explains_every_field():
    text = SHIPPED.read_text(encoding="utf-8")
    assert dataclasses.asdict(read(SHIPPED)).keys() == yaml.safe_load(text).keys()
    for component, fields in dataclasses.asdict(Config()).items():
        assert list(yaml.safe_load(text)[component]) == list(fields)
    lines = [line for line in text.splitlines() if line.startswith("  ")]
    assert [line for line in lines if " # " not in line] == []
    assert read(SHIPPED) == Config()  # it spells the defaults out


@pytest.mark.parametrize("path", sorted(SHIPPED.parent.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_file_can_run(path):
    assert validate(read(path)).run.name == path.stem


def test_all_mistakes_are_listed_at_once_with_their_lines():
    text = """
model:
  heads: four
  widht: 64
trainer:
  steps: 10
  steps: 20
  log_interval: 2.5
  seed: true
pipelin:
  ranks: 4
optimizer: 3
pipeline:
  partition: [0, a]
  remat: half
  schedule: 1
"""
    problems = problems_of(lambda: parse(text, name="run.yaml"))
    assert [problem.split(": ")[0] for problem in problems] == [
        f"run.yaml:{line}" for line in (3, 4, 7, 8, 9, 10, 12, 14, 15, 16)
    ]
    listed = "\n".join(problems)
    assert "model.heads: got 'four' (str), expected an integer." in listed
    assert "unknown key 'model.widht'; did you mean 'width'?" in listed
    assert "trainer.steps: given twice" in listed
    assert "trainer.log_interval: got 2.5 (float), expected an integer." in listed
    assert "trainer.seed: got True (bool), expected an integer." in listed
    assert "unknown key 'pipelin'; did you mean 'pipeline'?" in listed
    assert "optimizer: got 3 (int), expected keys." in listed
    assert "pipeline.partition: got [0, 'a'] (list), expected text or a list of integers." in listed
    assert "pipeline.remat: got 'half' (str), expected 'none' or 'full' or an integer." in listed
    assert "pipeline.schedule: got 1 (int), expected text." in listed


@pytest.mark.parametrize(
    "text",
    [
        "run: !!python/object/apply:os.system [echo]",
        "run: {name: !!python/name:os.system ''}",
        "trainer: {steps: !!python/object/apply:os.getpid []}",
    ],
)
def test_objects_of_python_are_not_made(text):
    [problem] = problems_of(lambda: parse(text, name="x.yaml"))
    assert problem.startswith("x.yaml:1: this is not YAML: could not determine a constructor for")


def test_what_is_no_yaml_or_no_file_is_said_with_its_place(tmp_path):
    assert problems_of(lambda: parse("model: {\n", name="x.yaml"))[0].startswith("x.yaml:2: ")
    assert problems_of(lambda: parse("a: !!python/object:os.x {}", name="x"))[0].startswith("x:1: ")
    assert str(tmp_path / "none.yaml") in problems_of(read, tmp_path / "none.yaml")[0]


def test_a_file_says_of_which_version_its_format_is():
    assert to_yaml(Config()).startswith("version: 1\n")
    assert parse("version: 1\ntrainer: {steps: 7}").trainer.steps == 7
    for version in ("2", "0", "one", "true"):
        [problem] = problems_of(lambda text=f"version: {version}": parse(text, name="x.yaml"))
        assert problem.startswith("x.yaml:1: version: got ") and "reads 1" in problem


@pytest.mark.parametrize(("text", "number"), [("3e-4", 3e-4), ("1", 1.0), ("1.0e30", 1e30)])
def test_numbers_without_a_dot_are_numbers(text, number):
    value = parse(f"optimizer: {{learning_rate: {text}}}").optimizer.learning_rate
    assert value == number
    assert isinstance(value, float)


@pytest.mark.parametrize("text", ["nan", "fast", "true", "[1]", "null"])
def test_other_text_is_no_number(text):
    assert "expected a number" in problems_of(parse, f"optimizer: {{learning_rate: {text}}}")[0]


configs = st.builds(
    Config,
    model=st.builds(ModelConfig, layers=st.integers(), dropout=st.floats(allow_nan=False)),
    data=st.builds(
        DataConfig,
        path=st.none() | st.text(st.characters(codec="utf-8")),
        fingerprint=st.none(),
    ),
    optimizer=st.builds(
        OptimizerConfig,
        learning_rate=st.floats(allow_nan=False),
        clip_norm=st.none() | st.floats(0, 1e300),
    ),
    pipeline=st.builds(
        PipelineConfig,
        partition=st.sampled_from(["uniform", "type:^Block$"])
        | st.lists(st.integers(0, 99)).map(tuple),
        remat=st.sampled_from(["none", "full"]) | st.integers(1, 9),
    ),
)


@given(configs)
@example(Config(data=DataConfig(path="next\x85line\u2028para\u2029 \n\r\t end\ufeff")))
def test_writing_and_reading_gives_the_same(config):
    assert parse(to_yaml(config)) == config


@pytest.mark.parametrize(
    ("pipeline", "part"),
    [
        (dict(memory_limit=1e9), "only auto chooses by memory"),
        (dict(schedule="auto", memory_limit=0.0), "memory_limit: got 0.0, expected more than 0"),
        (dict(schedule="auto", memory_limit=float("nan")), "memory_limit: got nan"),
        (dict(schedule="auto", chunks=0), "pipeline.chunks: got 0"),
        (dict(schedule="atuo"), "did you mean 'auto'?"),
        (dict(schedule="auto", partition=(0, 3, 7, 10)), "expected 5"),
        (dict(schedule="auto", ranks=11), "more than the pipeline's 10 layers"),
    ],
)
def test_settings_of_auto_are_checked(pipeline, part):
    [problem] = problems_of(validate, Config(pipeline=PipelineConfig(**pipeline)))
    assert part in problem


@pytest.mark.parametrize("partition", [(0, 3, 5, 7, 10), (0, 1, 2, 3, 5, 6, 7, 8, 10), "flops"])
def test_auto_takes_boundaries_for_any_of_its_placements(partition):
    config = Config(pipeline=PipelineConfig(schedule="auto", partition=partition))
    assert validate(config) == config


def test_the_defaults_are_valid():
    assert validate(Config()) == Config()


def test_settings_at_odds_are_listed_all_at_once():
    problems = problems_of(
        validate,
        Config(
            model=ModelConfig(layers=2, width=100, heads=8),
            pipeline=PipelineConfig(
                ranks=8, microbatches=8, data=2, schedule="1f1", partition="flop"
            ),
            optimizer=OptimizerConfig(warmup_steps=4000, clip_norm=0.0),
            trainer=TrainerConfig(
                batch_size=40, keep_checkpoints=1, log_interval=0, spike=1, rollbacks=-1
            ),
            run=RunConfig(name="a/b"),
        ),
    )
    listed = "\n".join(problems)
    assert len(problems) == 12
    assert "8 x 2 = 16; try 32 or 48." in listed
    assert "model.width: got 100, which 8 heads do not divide; try width 96 or 104" in listed
    assert "pipeline.ranks: got 8, more than the pipeline's 4 layers" in listed
    assert "did you mean '1f1b'?" in listed
    assert (
        "optimizer.warmup_steps: got 4000, expected at most as many as trainer.steps, 1000."
        in listed
    )
    assert "optimizer.clip_norm: got 0.0" in listed
    assert "trainer.keep_checkpoints: got 1, expected at least 2" in listed
    assert "trainer.spike: got 1, expected more than 1, or null." in listed
    assert "trainer.rollbacks: got -1, expected at least 0." in listed
    assert "trainer.log_interval: got 0, expected at least 1." in listed
    assert "run.name: got 'a/b'" in listed


def test_what_a_leap_does_wants_to_know_what_one_is():
    for action in ("log", "skip"):
        (problem,) = problems_of(validate, Config(trainer=TrainerConfig(spike_action=action)))
        assert problem.startswith(f"trainer.spike_action: got '{action}', but nothing says what a")
        validate(Config(trainer=TrainerConfig(spike_action=action, norm_spike=3.0)))


def test_no_run_takes_the_folder_of_tokens():
    run = RunConfig(name="tokens")
    [problem] = problems_of(validate, Config(run=run))
    assert problem.startswith("run.name: got 'tokens'") and "data.cache" in problem
    validate(Config(run=run, data=DataConfig(cache="elsewhere")))


@pytest.mark.parametrize(
    ("method", "part"),
    [
        ("flop", "did you mean 'flops'?"),
        ("type:(", "no regular expression"),
        ((0, 5, 10), "pipeline.partition: "),
        ((0, 3, 2, 5, 10), "pipeline.partition: "),
        ((0, 3, 5, 7, 9), "pipeline.partition: "),
    ],
)
def test_a_partition_that_cannot_be_is_refused(method, part):
    config = Config(pipeline=PipelineConfig(partition=method))
    assert part in problems_of(validate, config)[0]


@pytest.mark.parametrize("method", ["uniform", "flops", "type:Block", (0, 3, 5, 7, 10)])
def test_a_partition_that_can_be_is_taken(method):
    validate(Config(pipeline=PipelineConfig(partition=method)))


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_the_learning_rate_is_a_positive_number(rate):
    config = Config(optimizer=OptimizerConfig(learning_rate=rate))
    assert "optimizer.learning_rate" in problems_of(validate, config)[0]


def test_nothing_of_this_starts_a_backend():
    code = (
        "from jaxpipe.config import Config, PipelineConfig, validate; validate(Config())\n"
        "try: validate(Config(pipeline=PipelineConfig(ranks=100, microbatches=3)))\n"
        "except ValueError as error: assert 'pipeline.ranks: got 100' in str(error), error\n"
        "else: assert False\n"
        "import jax; jax.config.update('jax_num_cpu_devices', 3)\n"  # refused after a start
        "assert len(jax.devices('cpu')) == 3"
    )
    environment = {"PYTHONPATH": str(SHIPPED.parents[1]), "JAX_PLATFORMS": "cpu", "PATH": ""}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def a_run(folder, **trainer):
    return Config(
        run=RunConfig(directory=str(folder), name="first"), trainer=TrainerConfig(**trainer)
    )


def test_a_run_writes_its_effective_configuration(tmp_path):
    config = a_run(tmp_path, steps=40)
    chosen = choose(config, "auto")
    assert not chosen.resume
    assert list(tmp_path.iterdir()) == []  # choosing writes nothing
    chosen.open()
    assert read(tmp_path / "first" / "config.yaml") == config


def test_the_same_run_again_is_continued(tmp_path):
    choose(a_run(tmp_path), "auto").open()
    again = choose(a_run(tmp_path), "auto")
    assert again.resume
    assert again.changes == ()


def test_a_run_that_moved_is_the_same_run(tmp_path):
    choose(a_run(tmp_path / "here"), "auto").open()
    (tmp_path / "here").rename(tmp_path / "there")
    assert choose(a_run(tmp_path / "there"), "auto").resume


def test_another_configuration_is_refused_and_nothing_changes(tmp_path):
    choose(a_run(tmp_path, seed=40), "auto").open()
    message = "\n".join(problems_of(choose, a_run(tmp_path, seed=50, steps=7), "auto"))
    assert "trainer.seed: 40 -> 50" in message
    assert "trainer.steps" not in message
    assert "--resume must" in message
    assert read(tmp_path / "first" / "config.yaml").trainer.seed == 40


def test_how_long_where_and_how_fast_may_change(tmp_path):
    first = a_run(tmp_path)
    choose(first, "auto").open()
    for name, value in by_field(first).items():
        component, field = name.split(".")
        other = {"ranks": 2, "steps": 7, "learning_rate": 0.5, "schedule": "zb-h1"}.get(field)
        if other is None:
            continue
        part = dataclasses.replace(getattr(first, component), **{field: other})
        chosen = choose(dataclasses.replace(first, **{component: part}), "auto")
        assert chosen.resume and chosen.changes == (f"{name}: {value} -> {other}",)


def test_what_may_change_are_fields():
    for name, part in Config().components.items():
        assert {f"{name}.{field}" for field in part.FREE} <= set(by_field(Config()))


def test_what_is_not_as_by_default_is_written_beside_it_and_starts_the_same_run(tmp_path):
    config = Config(
        data=DataConfig(path="a: # strange\nname"),
        pipeline=PipelineConfig(partition=(0, 3, 5, 7, 10), remat=2),
        run=RunConfig(directory=str(tmp_path), name="first"),
    )
    choose(config, "auto").open()
    text = (tmp_path / "first" / "config.diff").read_text()
    assert "  partition: [0, 3, 5, 7, 10]  # default: parameters\n" in text
    assert "steps" not in text
    assert parse(text) == config


def test_must_continues_with_another_configuration_and_keeps_the_old_one(tmp_path):
    choose(a_run(tmp_path, steps=40), "auto").open()
    (tmp_path / "first" / "checkpoints" / "step_00000010").mkdir(parents=True)
    for steps in (50, 60):
        chosen = choose(a_run(tmp_path, steps=steps), "must")
        chosen.open()
        assert chosen.changes == (f"trainer.steps: {steps - 10} -> {steps}",)
    names = ["config-1.yaml", "config-2.yaml", "config.yaml"]
    kept = [read(tmp_path / "first" / name).trainer.steps for name in names]
    assert kept == [40, 50, 60]


def test_must_needs_a_run_with_a_checkpoint(tmp_path):
    assert "no run to resume" in problems_of(choose, a_run(tmp_path), "must")[0]
    choose(a_run(tmp_path), "auto").open()
    assert "no checkpoint" in problems_of(choose, a_run(tmp_path), "must")[0]


def test_never_moves_the_old_run_aside(tmp_path):
    for steps in (40, 50, 60):
        chosen = choose(a_run(tmp_path, steps=steps), "never")
        assert not chosen.resume
        chosen.open()
    kept = {path.parent.name: read(path).trainer.steps for path in tmp_path.glob("*/config.yaml")}
    assert kept == {"first": 60, "first.1": 40, "first.2": 50}


@pytest.mark.parametrize("resume", ["auto", "must", "never"])
def test_a_folder_that_is_no_run_is_left_alone(tmp_path, resume):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "thesis.tex").write_text("")
    assert "is no run" in problems_of(choose, a_run(tmp_path), resume)[0]


@given(configs, configs)
def test_there_are_differences_exactly_when_the_runs_differ(one, other):
    assert differences(one, one) == []
    assert (differences(one, other) == []) == (one == other)


def test_what_a_network_has_no_use_for_is_refused():
    problems = problems_of(
        validate,
        Config(
            model=ModelConfig(network="vit", tied=True, kv_heads=2, vocab_size=300, hidden=100),
            pipeline=PipelineConfig(sequence_parallel=True),
        ),
    )
    listed = "\n".join(problems)
    assert len(problems) == 6
    assert "model.hidden: got 100, for vit a multiple of model.width; try 128." in listed
    assert "model.tied: got True; vit has none, only gpt and llama." in listed
    assert "model.kv_heads: got 2; vit has none, only llama." in listed
    assert "model.vocab_size: got 300; vit has none" in listed
    assert "data.source: got 'text', but model.network = 'vit' reads images" in listed
    assert "pipeline.sequence_parallel: got true; vit" in listed
    arrays = DataConfig(source="arrays", path="x.npz", packing="packed")
    [one, other] = problems_of(validate, Config(data=arrays))
    assert "data.packing: got 'packed'; arrays make no tokens" in one
    assert "data.source: got 'arrays', but model.network = 'gpt' reads tokens" in other
    [problem] = problems_of(validate, Config(model=ModelConfig(positions=64)))
    assert "model.positions: got 64, expected at least data.sequence_length, 128" in problem


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        (dict(name="muno"), "optimizer.name: unknown 'muno'; did you mean 'muon'?"),
        (dict(schedule="cosin"), "optimizer.schedule: unknown 'cosin'; did you mean 'cosine'?"),
        (dict(name="sgd", beta2=0.9), "beta2: got 0.9; sgd has none, but weight_decay, momentum"),
        (dict(name="adam", weight_decay=0.1), "weight_decay: got 0.1; adam has none"),
        (dict(schedule="constant", final_fraction=0.5), "constant has none, but nothing of"),
        (dict(decay_fraction=0.5), "decay_fraction: got 0.5; cosine has none, but final_fraction"),
        (dict(name="sgd", momentum=1.0), "optimizer.momentum: got 1.0, expected 0 or more and"),
        (dict(epsilon=0.0), "optimizer.epsilon: got 0.0, expected more than 0"),
    ],
)
def test_what_an_optimizer_or_schedule_has_no_use_for_is_refused(settings, part):
    [problem] = problems_of(validate, Config(optimizer=OptimizerConfig(**settings)))
    assert part in problem
