"""The workload that all benchmarks share, pipelined and plain, in one process each.

    python benchmarks/workload.py --ranks 4 --steps 5

A GPT of 8 layers, width 256, vocabulary 4096, sequence 128; 16 microbatches of 2 sequences; AdamW
in float32. `--model gpt` is jaxpipe.models.gpt, whose layers are written to leave little for
XLA's CPU backend to do; `--model stock` is the same network of Flax's own LayerNorm, attention and
Dense.
`--ranks 0` is the same layers in plain JAX, unrolled, with gradients accumulated over the
microbatches by a scan. Prints one line of JSON: seconds to settle (for "auto" with its search), to
compile and of each step, CPU seconds of a step, bytes of temporaries, the loss; with `--timelines`
also costs, and the makespan measured and simulated.
"""

import argparse
import dataclasses
import json
import os
import statistics
import time
from collections.abc import Sequence
from typing import Any


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """What to run; by default from the process's own command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--ranks", type=int, default=4, help="0 for plain JAX")
    parser.add_argument("--schedule", default="1f1b")
    parser.add_argument("--chunks", type=int, help="stages on each rank")
    parser.add_argument("--microbatches", type=int, default=16)
    parser.add_argument("--partition", default="flops")
    parser.add_argument("--remat", default="none")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--model", choices=("gpt", "stock"), default="gpt")
    parser.add_argument("--text", help="write the optimised program to this file")
    parser.add_argument("--profile", help="write a profile of one step to this folder")
    parser.add_argument(
        "--timelines", type=int, default=0, help="steps to measure action by action"
    )
    parser.add_argument("--picture", help="draw the fastest of these, and its simulation, here")
    return parser.parse_args(words)


def build(options: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The model and one batch."""
    import numpy as np

    import jaxpipe as jp
    from jaxpipe.models.gpt import GPTConfig, gpt

    config = GPTConfig(
        vocab_size=options.vocab, width=options.width, num_layers=options.layers,
        num_heads=options.width // 64, sequence_length=128,
    )  # fmt: skip
    layers = gpt(config) if options.model == "gpt" else stock_layers(options)
    model = jp.PipelineModule(layers, jp.losses.cross_entropy, partition_method=options.partition)
    tokens = np.random.default_rng(0).integers(
        0, options.vocab, (2 * options.microbatches, 129), dtype=np.int32
    )
    return model, dict(inputs=tokens[:, :-1], targets=tokens[:, 1:])


def stock_layers(options: argparse.Namespace) -> list[Any]:
    """The same network as a user would write it of Flax's own layers."""
    import flax.linen as nn
    import jax.numpy as jnp

    import jaxpipe as jp

    class Embed(nn.Module):
        @nn.compact
        def __call__(self, tokens: Any) -> Any:
            position = nn.Embed(128, options.width)(jnp.arange(tokens.shape[1]))
            return nn.Embed(options.vocab, options.width)(tokens) + position

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            mask = nn.make_causal_mask(x[..., 0])
            attention = nn.MultiHeadDotProductAttention(num_heads=options.width // 64)
            x = x + attention(nn.LayerNorm()(x), mask=mask)
            hidden = nn.gelu(nn.Dense(4 * options.width)(nn.LayerNorm()(x)))
            return x + nn.Dense(options.width)(hidden)

    class Head(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return nn.Dense(options.vocab, use_bias=False)(nn.LayerNorm()(x))

    blocks = [jp.LayerSpec(Block) for _ in range(options.layers)]
    return [jp.LayerSpec(Embed), *blocks, jp.LayerSpec(Head)]


def plain_step(model: Any, optimizer: Any, num_microbatches: int) -> Any:
    """The step without a pipeline: `(params, opt_state, batch) -> (params, opt_state, loss)`."""
    import jax
    import jax.numpy as jnp
    import optax

    def one(params: Any, microbatch: Any) -> Any:
        loss, weight = model.loss_terms(model.apply(params, microbatch, train=True), microbatch)
        return loss, weight

    def step(params: Any, opt_state: Any, batch: Any) -> Any:
        cut = lambda x: x.reshape(num_microbatches, -1, *x.shape[1:])
        pieces = jax.tree.map(cut, batch)

        def body(carry: Any, piece: Any) -> Any:
            (loss, weight), grads = jax.value_and_grad(one, has_aux=True)(params, piece)
            return jax.tree.map(jnp.add, carry, (loss, weight, grads)), None

        zero = (jnp.zeros(()), jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        (loss, weight, grads), _ = jax.lax.scan(body, zero, pieces)
        grads = jax.tree.map(lambda g: g / weight, grads)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss / weight

    return jax.jit(step, donate_argnums=(0, 1))


def beside_simulation(engine: Any, timelines: list[Any], picture: str | None) -> dict[str, Any]:
    """What each op takes, by stage, and the makespan measured and simulated with that."""
    from jaxpipe.schedules import measured_costs, pictures, simulate

    schedule, lockstep = engine.schedule, engine.lockstep
    costs = measured_costs(schedule, timelines)
    if picture:
        with open(picture, "w") as file:
            file.write(pictures.svg(pictures.charts_of_measured(schedule, timelines, lockstep)))
    makespan = statistics.median(t.makespan for t in timelines)
    simulated = simulate(schedule, costs, lockstep).makespan
    return dict(costs=dataclasses.asdict(costs), makespan=makespan, simulated=simulated)


def simulate_cpus(count: int) -> None:
    """Makes this process's JAX, which is not imported yet, see so many CPU devices."""
    flags = f"--xla_force_host_platform_device_count={count}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
    os.environ["JAX_PLATFORMS"] = "cpu"


def build_engine(options: argparse.Namespace, model: Any, optimizer: Any) -> Any:
    """The pipeline that the options describe."""
    import jaxpipe as jp

    return jp.initialize(
        model,
        mesh=jp.make_mesh(pipe=options.ranks),
        optimizer=optimizer,
        schedule=options.schedule,
        num_microbatches=options.microbatches,
        num_chunks=options.chunks,
        remat=int(options.remat) if options.remat.isdigit() else options.remat,
    )


def main() -> None:
    options = arguments()
    simulate_cpus(max(options.ranks, 1))
    import jax
    import optax

    model, batch = build(options)
    optimizer = optax.adamw(3e-4)
    state: Any
    watched: Any = None  # there is nothing to watch without a pipeline
    engine: Any = None
    settle_seconds = 0.0
    if options.ranks:
        engine = build_engine(options, model, optimizer)
        start = time.perf_counter()
        engine.partition(batch)
        settle_seconds = time.perf_counter() - start
        state = engine.init(jax.random.key(0), batch)
        start = time.perf_counter()
        compiled = engine.compiled(state, batch)
        advance = lambda state: engine.train_batch(state, batch)
        watched = lambda state: engine.timeline(state, batch)[::2]
        loss_of = lambda metrics: metrics["loss"]
    else:
        params = model.init(jax.random.key(0), batch)
        state = (params, jax.jit(optimizer.init)(params))
        step = plain_step(model, optimizer, options.microbatches)
        start = time.perf_counter()
        compiled = step.lower(*state, batch).compile()
        batch = jax.device_put(batch)

        def advance(state: Any) -> Any:
            *state, loss = compiled(*state, batch)
            return state, loss

        loss_of = lambda loss: loss
    compile_seconds = time.perf_counter() - start
    if options.text:
        with open(options.text, "w") as file:
            file.write(compiled.as_text())
    seconds, before, loss = [], os.times(), 0.0
    for number in range(options.steps + 1):
        start = time.perf_counter()
        state, out = advance(state)
        loss = float(loss_of(out))
        seconds.append(time.perf_counter() - start)
        if options.profile and number == 0:
            with jax.profiler.trace(options.profile):
                state, out = advance(state)
                jax.block_until_ready(out)
    spent = os.times()
    timelines = []
    for _ in range(options.timelines):
        state, timeline = watched(state)
        timelines.append(timeline)
    cpu = (spent.user - before.user + spent.system - before.system) / (options.steps + 1)
    memory = compiled.memory_analysis()
    result = dict(
        settle=settle_seconds,
        compile=compile_seconds,
        steps=seconds[1:],
        cpu=cpu,
        temporaries=memory.temp_size_in_bytes,
        loss=loss,
    )
    if timelines:
        result |= beside_simulation(engine, timelines, options.picture)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
