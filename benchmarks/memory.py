"""Temporaries per device of one step's gradients: this loop, and GPipe by autodiff through a scan.

    python benchmarks/memory.py

The workload of benchmarks/workload.py on 4 ranks, for several numbers of microbatches. "autodiff"
is the usual pipeline in JAX: a scan over ticks with a permute, differentiated as a whole; its
embedding and head run outside the pipeline. Read from `memory_analysis()` of the compiled programs;
nothing is run, so the figures do not depend on the machine's load.
"""

import argparse
import os
import sys
from typing import Any

RANKS = 4


def autodiff_gpipe(model: Any, num_microbatches: int, params: Any, batch: Any) -> Any:
    """The gradients of a GPipe that is differentiated as a whole."""
    import jax
    import jax.numpy as jnp
    from jax import lax
    from jax.sharding import PartitionSpec as P

    import jaxpipe as jp

    mesh = jp.make_mesh(pipe=RANKS)
    embed, *blocks, head = model.layers
    per_stage = len(blocks) // RANKS
    run = lambda layer, p, x: layer.apply(p, x, {}, None, True)

    def pipeline(stacked: Any, xs: Any) -> Any:
        stage, rank = jax.tree.map(lambda a: a[0], stacked), lax.axis_index("pipe")

        def tick(x: Any, t: Any) -> Any:
            fresh = xs[jnp.clip(t, 0, num_microbatches - 1)]
            x = jnp.where(rank == 0, fresh, x)
            for i in range(per_stage):
                x = run(blocks[i], jax.tree.map(lambda a, i=i: a[i], stage), x)
            return lax.ppermute(x, "pipe", [(i, (i + 1) % RANKS) for i in range(RANKS)]), x

        ticks = jnp.arange(num_microbatches + RANKS - 1)
        _, outputs = lax.scan(tick, jnp.zeros_like(xs[0]), ticks)
        return outputs[None, RANKS - 1 :]

    def loss(params: Any) -> Any:
        stack = lambda *a: jnp.stack(a).reshape(RANKS, per_stage, *a[0].shape)
        stacked = jax.tree.map(stack, *(params[layer.name] for layer in blocks))
        x = run(embed, params[embed.name], batch["inputs"])
        xs = x.reshape(num_microbatches, -1, *x.shape[1:])
        piped = jax.shard_map(
            pipeline, mesh=mesh, in_specs=(P("pipe"), P()), out_specs=P("pipe"), check_vma=False
        )
        y = piped(stacked, xs)[-1].reshape(x.shape)
        total, weight = model.loss_fn(run(head, params[head.name], y), batch)
        return total / weight

    return jax.jit(jax.grad(loss)).lower(params)


def temporaries(lowered: Any) -> float:
    """Megabytes of temporaries per device."""
    return lowered.compile().memory_analysis().temp_size_in_bytes / 1e6


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--microbatches", type=int, nargs="+", default=[4, 8, 16, 64])
    options = parser.parse_args()
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={RANKS}"
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    import workload

    import jaxpipe as jp

    sys.argv = sys.argv[:1]
    settings = workload.arguments()
    print("temporaries per device, MB")
    print(
        f"{'microbatches':>12s} {'1f1b':>8s} {'1f1b-eager':>11s} {'gpipe':>8s} {'autodiff':>9s}"
        " 1f1b / autodiff"
    )
    for count in options.microbatches:
        settings.microbatches, settings.partition = count, "type:Block"
        model, batch = workload.build(settings)
        found = []
        for schedule in ("1f1b", "1f1b-eager", "gpipe"):
            engine = jp.initialize(
                model, mesh=jp.make_mesh(pipe=RANKS), schedule=schedule, num_microbatches=count
            )
            state = engine.abstract_state(batch)
            lowered = jax.jit(engine.value_and_grad).lower(state.params, batch, jax.random.key(0))
            found.append(temporaries(lowered))
        params = jax.eval_shape(lambda b=batch, m=model: m.init(jax.random.key(0), b))
        lowered = autodiff_gpipe(model, count, params, jax.tree.map(jax.numpy.asarray, batch))
        found.append(temporaries(lowered))
        one, eager, gpipe, autodiff = found
        print(
            f"{count:12d} {one:8.1f} {eager:11.1f} {gpipe:8.1f} {autodiff:9.1f}"
            f" {one / autodiff:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
