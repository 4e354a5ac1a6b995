"""`jaxpipe generate RUN`."""

import dataclasses
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from jaxpipe.errors import ConfigError
from jaxpipe.simulate_devices import simulate_devices

if TYPE_CHECKING:
    from jaxpipe.data import Tokenizer
    from jaxpipe.generate import Generator
    from jaxpipe.sampling import Sampling

_BEGIN = "\n"  # what a text goes on from, where nothing is given and no token ends texts


@dataclass(frozen=True)
class Generate:
    """Go on with a text, by a model that was trained; it appears as it comes.

    An example: jaxpipe generate runs/gpt-stdlib --prompt "def read(" --seed 1
    """

    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The folder of a run, of its checkpoints or of one of them, or one that `import` wrote."""
    prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """What to go on with; given several times, several texts at once."""
    prompt_file: Path | None = None
    """A file whose text is to be gone on with; - for standard input."""
    max_tokens: int = 200
    """How many tokens to add, at most."""
    temperature: float = 1.0
    """Below 1 what is probable becomes more so; 0 takes the most probable token always."""
    top_p: float = 1.0
    """Draws from the most probable tokens that together have this probability."""
    seed: int = 0
    """Another one draws another text."""
    step: int | None = None
    """Which checkpoint; the newest, if left out."""
    ranks: int | None = None
    """Places in the pipeline, simulated on CPU; by default as in training, and 1 on CPU."""
    tensor: int = 1
    """Devices that share each layer."""
    tokenizer: str | None = None
    """bytes, or a tokenizer.json, where the run does not have it."""

    def run(self) -> int:
        """Prints text to standard output and speed to standard error; returns the exit code."""
        began = time.monotonic()
        if self.ranks is not None or self.tensor > 1:
            simulate_devices((self.ranks or 1) * self.tensor)
        from jaxpipe.generate import Generator
        from jaxpipe.sampling import Sampling
        from jaxpipe.trained import find_trained, generating_engine, generating_params, ranks_for

        sampling = Sampling(self.temperature, self.top_p, self.seed)
        trained = find_trained(self.path, self.step)
        trained.check_reads_tokens()
        tokenizer = trained.tokenizer(self.tokenizer)
        texts = self._texts(tokenizer)
        ranks = ranks_for(trained, self.ranks, self.tensor)
        engine = generating_engine(trained, ranks, self.tensor)
        generator = Generator(engine, generating_params(trained, engine))
        devices = "1 device" if engine.mesh.size == 1 else f"{engine.mesh.size} devices"
        print(f"{trained.path}, on {devices}", file=sys.stderr)
        sampling = dataclasses.replace(sampling, num_ids=tokenizer.vocab_size)
        self._write(generator, tokenizer, texts, sampling, began)
        return 0

    def _texts(self, tokenizer: "Tokenizer") -> list[str]:
        """What to go on with."""
        texts = list(self.prompt)
        if self.prompt_file is not None:
            read = sys.stdin.read if str(self.prompt_file) == "-" else self.prompt_file.read_text
            texts.append(read())
        if not all(texts):
            raise ConfigError("a prompt is empty; leave it out to begin with nothing.")
        return texts or [_BEGIN if tokenizer.end is None else ""]

    def _write(
        self,
        generator: "Generator",
        tokenizer: "Tokenizer",
        texts: list[str],
        sampling: "Sampling",
        began: float,
    ) -> None:
        from jaxpipe.generate import Characters

        end = [] if tokenizer.end is None else [tokenizer.end]
        prompts = [ids.tolist() or end for ids in tokenizer.encode(texts)]
        prompts = self._fitting(prompts, generator.max_positions)
        characters = [Characters(tokenizer) for _ in prompts]
        alone, num_tokens, times = len(prompts) == 1, 0, [time.monotonic()]
        if alone:
            _show(texts[0])
        for tokens in generator.stream(
            prompts, self.max_tokens, sampling=sampling, end=tokenizer.end, when_full="forget"
        ):
            times.append(time.monotonic())
            for n, token in enumerate(tokens):
                if token is None or token == tokenizer.end:
                    continue
                num_tokens += 1
                texts[n] += (more := characters[n].add(token))
                if alone:
                    _show(more)
        for n, rest in enumerate(characters):
            texts[n] += (more := rest.rest())
            if alone:
                _show(more)
        print() if alone else print("\n\n----\n\n".join(texts))
        self._say_speed(generator, times, num_tokens, began)

    def _fitting(self, prompts: list[list[int]], limit: int | None) -> list[list[int]]:
        """What the model can have in view of prompts; says where that is not all."""
        if limit is None or max(map(len, prompts)) + self.max_tokens - 1 <= limit:
            return prompts
        print(
            f"the model has learned {limit} positions: where they are full it goes on with the last"
            f" {limit // 2} tokens in view",
            file=sys.stderr,
        )
        return [prompt[-limit:] for prompt in prompts]

    def _say_speed(
        self, generator: "Generator", times: list[float], num_tokens: int, began: float
    ) -> None:
        """How long the beginning took, and how fast it went on once programs were compiled."""
        steady = times[1 + generator.tokens_per_call :]
        text = f"{num_tokens} tokens; the first after {times[1] - began:.1f} s"
        if len(steady) > generator.tokens_per_call:
            rate = num_tokens / (len(times) - 1) * (len(steady) - 1) / (steady[-1] - steady[0])
            text += f", {rate:,.0f} tokens/s then"
        print(text, file=sys.stderr)


def _show(text: str) -> None:
    print(text, end="", flush=True)
