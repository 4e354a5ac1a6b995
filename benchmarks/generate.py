"""Tokens per second: caches on 1, 2 and 4 ranks, against computing the whole text for each token.

    python benchmarks/generate.py --rounds 5

A GPT of 8 layers, width 256, vocabulary 4096, float32, that goes on from prompts of 64 tokens by
--tokens more, in calls of --per-call. All variants are in one process, and each runs once in every
round: medians, and ratios within a round. "whole text" is `engine.predict` of all 128 positions,
once for each token, as generation without caches would be.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

PROMPT, LENGTH = 64, 128


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--per-call", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def engine_on(ranks: int, sequences: int) -> tuple[Any, Any]:
    """An engine, and a state with fresh parameters."""
    import jax
    import numpy as np

    import jaxpipe as jp
    from jaxpipe.models import GPTConfig, gpt

    config = GPTConfig(
        vocab_size=4096, width=256, num_layers=8, num_heads=4, sequence_length=LENGTH
    )
    model = jp.PipelineModule(gpt(config), jp.nn.cross_entropy)
    groups = min(ranks, sequences)
    engine = jp.initialize(model, mesh=jp.make_mesh(pipe=ranks), num_microbatches=groups)
    tokens = np.zeros((sequences, LENGTH), np.int32)
    return engine, engine.init(jax.random.key(0), dict(inputs=tokens, targets=tokens))


def cached(engine: Any, state: Any, ranks: int, sequences: int, options: Any) -> Callable[[], None]:
    """Goes on by --tokens tokens; the prompts are in the caches already."""
    import numpy as np

    from jaxpipe.sampling import Sampling

    groups = min(ranks, sequences)
    decoder = engine.decoder(
        num_microbatches=groups, rows=sequences // groups, capacity=PROMPT + options.tokens
    )
    weights, how = decoder.weights(state.params), Sampling(0.8, 0.95)
    prompts = np.zeros((sequences, PROMPT), np.int32)
    start, _ = decoder.prefill(weights, prompts, np.full(sequences, PROMPT), how)
    caches = start.caches

    def run() -> None:
        nonlocal caches
        after = start._replace(caches=caches)
        for _ in range(options.tokens // options.per_call):
            after, chosen = decoder.decode(weights, after, how, num_tokens=options.per_call)
            np.asarray(chosen.tokens)
        caches = after.caches

    return run


def whole_text(engine: Any, state: Any, sequences: int) -> Callable[[], None]:
    """Computes one token from all that is there."""
    import jax
    import numpy as np

    tokens = np.zeros((sequences, LENGTH), np.int32)
    return lambda: jax.block_until_ready(engine.predict(state, dict(inputs=tokens, targets=tokens)))


def main() -> None:
    import jax

    options = arguments()
    jax.config.update("jax_num_cpu_devices", max(options.ranks))
    variants: dict[tuple[str, int, int], tuple[Callable[[], None], int]] = {}
    for sequences in options.sequences:
        for ranks in options.ranks:
            engine, state = engine_on(ranks, sequences)
            run = cached(engine, state, ranks, sequences, options)
            variants["caches", ranks, sequences] = run, options.tokens * sequences
            if ranks == min(options.ranks):
                variants["whole text", ranks, sequences] = (
                    whole_text(engine, state, sequences),
                    sequences,
                )
    rates: dict[Any, list[float]] = {name: [] for name in variants}
    for number in range(options.rounds + 1):
        for name, (run, tokens) in variants.items():
            began = time.perf_counter()
            run()
            if number:  # the first compiles
                rates[name].append(tokens / (time.perf_counter() - began))
    first = min(options.ranks)
    print("| | ranks | sequences | tokens/s | of 1 rank | of the whole text |")
    print("|---|--:|--:|--:|--:|--:|")
    for (what, ranks, sequences), found in rates.items():
        ratio = lambda base, found=found: statistics.median(
            a / b for a, b in zip(found, rates[base], strict=True)
        )
        print(
            f"| {what} | {ranks} | {sequences} | {statistics.median(found):,.0f} |"
            f" {ratio(('caches', first, sequences)):.2f} |"
            f" {ratio(('whole text', first, sequences)):.1f} |"
        )


if __name__ == "__main__":
    main()
