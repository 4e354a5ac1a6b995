"""What `engine.memory` counts, beside what XLA allocates for the same step.

    python benchmarks/plan.py             # on simulated CPU devices
    python benchmarks/plan.py --h100      # compiled for H100s that are not there, in bfloat16

Nothing is run. The second needs JAX's CUDA wheels, and a minute or two for each line.
"""

import argparse
import os
from collections.abc import Mapping
from typing import Any

ROWS, TIME = 2, 256
# What is compiled: (network, pipe, data, tensor, what differs).
CASES: tuple[tuple[str, int, int, int, dict[str, Any]], ...] = (
    ("gpt", 4, 1, 1, dict(schedule="1f1b")),
    ("gpt", 4, 1, 1, dict(schedule="1f1b", remat="full")),
    ("gpt", 4, 1, 1, dict(schedule="1f1b", remat=1)),
    ("gpt", 4, 1, 1, dict(schedule="zb-h1")),
    ("gpt", 4, 1, 1, dict(schedule="gpipe")),
    ("gpt", 2, 1, 1, dict(schedule="interleaved")),
    ("llama", 4, 1, 1, dict(schedule="1f1b")),
    ("llama", 2, 2, 1, dict(schedule="1f1b", zero=1)),
    ("llama", 2, 2, 1, dict(schedule="1f1b", zero=3)),
    ("llama", 2, 1, 2, dict(schedule="1f1b")),
    ("llama", 2, 1, 2, dict(schedule="1f1b", sequence_parallel=True)),
)
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


def mesh_of(pipe: int, data: int, tensor: int, on_h100: bool) -> Any:
    from jax.experimental import topologies

    import jaxpipe as jp

    if not on_h100:
        return jp.make_mesh(pipe=pipe, data=data, tensor=tensor)
    topology = topologies.get_topology_desc(
        "h100", platform="cuda", target_config=H100, topology=f"1x1x{pipe * data * tensor}"
    )
    return jp.make_mesh(pipe=pipe, data=data, tensor=tensor, devices=topology.devices)


def engine_of(network: str, mesh: Any, settings: Mapping[str, Any], on_h100: bool) -> Any:
    import jax.numpy as jnp
    import optax

    import jaxpipe as jp
    from jaxpipe import nn
    from jaxpipe.models import GPTConfig, LlamaConfig, gpt, llama

    settings = dict(settings)
    cut = settings.pop("sequence_parallel", False)
    common: Any = dict(vocab_size=4096, width=256, num_layers=8, sequence_parallel=cut)
    if network == "gpt":
        layers = gpt(GPTConfig(num_heads=4, sequence_length=TIME, **common))
    else:
        layers = llama(LlamaConfig(num_heads=8, num_kv_heads=4, hidden=512, **common))
    dtype = jnp.bfloat16 if on_h100 else None
    model = jp.PipelineModule(
        layers, nn.cross_entropy, partition_method="flops", compute_dtype=dtype
    )
    return jp.initialize(
        model, mesh=mesh, optimizer=optax.adamw(1e-3), num_microbatches=4,
        compiler_options=dict(xla_gpu_autotune_level=0) if on_h100 else None, **settings,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--h100", action="store_true", help="compile for H100s, in bfloat16")
    parser.add_argument("--cases", type=int, nargs="+", help="which lines, from 0")
    options = parser.parse_args()
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    import jax.numpy as jnp

    print("MB on each device: state and batch, then what a step takes; counted / allocated")
    for number in options.cases or range(len(CASES)):
        network, pipe, data, tensor, settings = CASES[number]
        engine = engine_of(
            network, mesh_of(pipe, data, tensor, options.h100), settings, options.h100
        )
        ids = jax.ShapeDtypeStruct((ROWS * 4 * data, TIME), jnp.int32)
        batch = dict(inputs=ids, targets=ids)
        told = engine.memory(batch)
        real = engine.compiled(engine.abstract_state(batch), batch).memory_analysis()
        held, step = real.argument_size_in_bytes, real.temp_size_in_bytes
        what = " ".join(f"{name}={value}" for name, value in settings.items())
        print(
            f"{network:5s} {pipe}x{data}x{tensor} {what:38s}"
            f" {(told.state + told.batch) / 1e6:6.1f} / {held / 1e6:6.1f}"
            f" {told.step / 1e6:7.1f} / {step / 1e6:7.1f}"
            f"   all {told.total / (held + step):.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
