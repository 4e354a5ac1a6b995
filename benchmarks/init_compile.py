"""What it takes to compile the making of parameters, by how many layers there are.

    python benchmarks/init_compile.py --layers 4 8 24

A GPT of width 64 on four simulated ranks. Prints, for each number of layers, CPU seconds of XLA and
lines of the optimised program, and how both compare with the first's. CPU seconds, since other work
on the machine leaves them as they are.
"""

import argparse
import os
import time


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 8, 24])
    options = parser.parse_args()
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
    found = {count: measured(count) for count in options.layers}
    first = found[options.layers[0]]
    for count, (seconds, lines) in found.items():
        ratios = f"{seconds / first[0]:.2f} and {lines / first[1]:.2f} of the first"
        print(f"{count:3d} layers: {seconds:5.2f} CPU s, {lines:,} lines; {ratios}")


def measured(num_layers: int) -> tuple[float, int]:
    import jax
    import numpy as np

    import jaxpipe as jp
    from jaxpipe.models import GPTConfig, gpt

    ids = np.zeros((16, 64), np.int32)
    batch = dict(inputs=ids, targets=ids)
    layers = gpt(GPTConfig(width=64, num_layers=num_layers))
    model = jp.PipelineModule(layers, jp.losses.cross_entropy)
    engine = jp.initialize(model, mesh=jp.make_mesh(pipe=4), num_microbatches=8)
    lowered = jax.jit(lambda key: engine.init(key, batch).params).lower(jax.random.key(0))
    before = time.process_time()
    program = lowered.compile()
    return time.process_time() - before, len(str(program.as_text()).splitlines())


if __name__ == "__main__":
    main()
