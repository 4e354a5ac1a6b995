"""What XLA makes of a training step for H100s: compiled ahead of time, without a GPU.

Runs where JAX's CUDA plugin is installed (`pip install 'jaxpipe[cuda]'`): it compiles for chips
that are described in words.
"""

import functools
import importlib.util
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.experimental import topologies
from optimised import Optimised, overlapping

import jaxpipe as jp
from jaxpipe.models import GPTConfig, gpt

PLUGINS = [f"jax_plugins.xla_cuda{major}" for major in (12, 13)]


def installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


pytestmark = [
    pytest.mark.skipif(
        not any(map(installed, PLUGINS)),
        reason=f"needs JAX's CUDA plugin, {' or '.join(PLUGINS)}: pip install 'jaxpipe[cuda]'",
    ),
    pytest.mark.timeout(900),
]

H100 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 10 }
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  device_memory_size: 84978434048
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
}
"""
RANKS, MICROBATCHES, ROWS, TIME = 4, 8, 5, 24
CONFIG = GPTConfig(vocab_size=56, width=64, num_layers=4, num_heads=8, sequence_length=TIME)


class Compiled(NamedTuple):
    engine: jp.Engine
    batch: Any
    program: Optimised
    memory: Any


@functools.cache
def step(schedule: str, data: int) -> Compiled:
    """A train step for `RANKS x data` H100s in one machine."""
    topology = topologies.get_topology_desc(
        "h100", platform="cuda", target_config=H100, topology=f"1x1x{RANKS * data}"
    )
    engine = jp.initialize(
        jp.PipelineModule(gpt(CONFIG), jp.losses.cross_entropy, compute_dtype=jnp.bfloat16),
        mesh=jp.make_mesh(pipe=RANKS, data=data, devices=topology.devices),
        optimizer=optax.adamw(1e-3), schedule=schedule, num_microbatches=MICROBATCHES,
        # Kernels are tuned by trying them out, on a GPU.
        compiler_options=dict(xla_gpu_autotune_level=0),
    )  # fmt: skip
    ids = jax.ShapeDtypeStruct((ROWS * MICROBATCHES * data, TIME), jnp.int32)
    batch = dict(inputs=ids, targets=ids)
    made = engine.compiled(engine.abstract_state(batch), batch)
    return Compiled(engine, batch, Optimised(made.as_text()), made.memory_analysis())


cases = pytest.mark.parametrize(
    ("schedule", "data"), [("1f1b", 2), ("1f1b-eager", 2), ("1f1b-eager", 1), ("zb-h1", 2)]
)


@cases
def test_nothing_is_copied_in_the_loop(schedule: str, data: int):
    case = step(schedule, data)
    plan = case.engine.program(case.batch)
    buffers = case.engine.abstract_state(case.batch).params.buffers.values()
    parameters = {b.shape[1:] for b in buffers} | {(math.prod(b.shape[1:]),) for b in buffers}
    # Vectors of the width are also what norms and biases compute with.
    parameters = {shape for shape in parameters if math.prod(shape) > 256}
    kept = {rows: f"{rows} rows" for rows in (plan.num_rows, plan.num_left)}
    mail = (plan.num_mail + 1, ROWS, TIME, CONFIG.width)
    for each in case.program.copied:
        for shape in each.shapes:
            assert shape not in parameters and shape != mail, each.text
            assert not (shape and shape[0] in kept and math.prod(shape[1:]) > 100), each.text
    # The loop does hold these: were their shapes others, the test would see nothing.
    held = [shape for each in case.program.loop if each.op == "while" for shape in each.shapes]
    assert parameters & set(held) and mail in held
    assert any(shape[:1] == (plan.num_rows,) and math.prod(shape[1:]) > 100 for shape in held)


@pytest.mark.parametrize("data", [1, 2])
def test_permutes_run_beside_all_work_of_a_tick_where_a_schedule_has_latency(data: int):
    case = step("1f1b-eager", data)
    plan = case.engine.program(case.batch)
    instructions = case.program.computations[case.program.tick]
    guards = [each.name for each in instructions if each.op == "while"]
    assert len(guards) == len(plan.branches)
    beside = overlapping(instructions, "while")
    assert len(beside) == plan.num_permutes == 2
    for permute, work in beside.items():
        assert [each.name for each in work] == guards, permute
    # None is left that nothing runs beside, or that a choice encloses.
    ops = [each.op for each in case.program.loop]
    assert ops.count("collective-permute-start") == 2
    assert "collective-permute" not in ops and "conditional" not in ops


@cases
def test_a_device_holds_its_share(schedule: str, data: int, capsys: pytest.CaptureFixture[str]):
    case = step(schedule, data)
    state = case.engine.abstract_state(case.batch)
    share = lambda x: math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    held = sum(map(share, jax.tree.leaves(state)))
    tokens = 2 * 4 * ROWS * MICROBATCHES * TIME
    memory = case.memory
    with capsys.disabled():
        print(
            f"\n{schedule} on {RANKS * data} H100s, bytes per device:"
            f" {memory.argument_size_in_bytes:,} arguments,"
            f" {memory.temp_size_in_bytes:,} temporaries",
        )
    assert memory.argument_size_in_bytes == pytest.approx(held + tokens, rel=0.02)
    assert memory.alias_size_in_bytes == pytest.approx(held, rel=0.02)  # the state is donated


def test_options_are_told_and_known():
    engine, batch, _, _ = step("1f1b-eager", 2)
    usual = step("1f1b", 2).engine.compiler_options()
    assert usual == dict(xla_gpu_enable_latency_hiding_scheduler=True, xla_gpu_autotune_level=0)
    assert usual.items() < engine.compiler_options().items()
    # All of them were accepted: an unknown one is not.
    some = engine.abstract_state(batch).step
    wrong = jax.jit(lambda x: x + 1, compiler_options=dict(xla_gpu_no_such_option=True))
    with pytest.raises(Exception, match="xla_gpu_no_such_option"):
        wrong.lower(some).compile()
