"""`jaxpipe generate RUN`."""

import dataclasses
import itertools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from jaxpipe.cli.alive import say, signs_of_life
from jaxpipe.config import MetricsConfig
from jaxpipe.errors import ConfigError
from jaxpipe.simulate_devices import simulate_devices

if TYPE_CHECKING:
    from jaxpipe.data import Tokenizer
    from jaxpipe.generate import Generator
    from jaxpipe.sampling import Sampling
    from jaxpipe.sections import Sections

_BEGIN = "\n"  # what a text goes on from, where nothing is given and no token ends texts


@dataclass(frozen=True)
class Generate:
    """Go on with a text, by a model that was trained; it appears as it comes.

    Of several texts a line appears once it is whole, behind the number of its prompt: "2| x = 1".

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
        metrics = MetricsConfig() if trained.config is None else trained.config.metrics
        with signs_of_life(metrics.heartbeat) as sections:
            with sections.enter("restore"):
                engine = generating_engine(trained, ranks, self.tensor)
                generator = Generator(engine, generating_params(trained, engine))
            devices = "1 device" if engine.mesh.size == 1 else f"{engine.mesh.size} devices"
            say(f"{trained.path}, on {devices}")
            sampling = dataclasses.replace(sampling, num_ids=tokenizer.vocab_size)
            self._write(generator, tokenizer, texts, sampling, began, sections)
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
        sections: "Sections",
    ) -> None:
        from jaxpipe.generate import Characters

        end = [] if tokenizer.end is None else [tokenizer.end]
        prompts = [ids.tolist() or end for ids in tokenizer.encode(texts)]
        prompts = self._fitting(prompts, generator.max_positions)
        characters = [Characters(tokenizer) for _ in prompts]
        show, num_tokens, times = _Shown(texts), 0, [time.monotonic()]
        steps = generator.stream(
            prompts, self.max_tokens, sampling=sampling, end=tokenizer.end, when_full="forget"
        )
        with sections.enter("compile"):
            first = next(steps, None)
        for tokens in itertools.chain([] if first is None else [first], steps):
            times.append(time.monotonic())
            for n, token in enumerate(tokens):
                if token is not None and token != tokenizer.end:
                    num_tokens += 1
                    show.add(n, characters[n].add(token))
        for n, rest in enumerate(characters):
            show.add(n, rest.rest())
        show.end()
        self._say_speed(generator, times, num_tokens, began)

    def _fitting(self, prompts: list[list[int]], limit: int | None) -> list[list[int]]:
        """What the model can have in view of prompts; says where that is not all."""
        if limit is None or max(map(len, prompts)) + self.max_tokens - 1 <= limit:
            return prompts
        say(
            f"the model has learned {limit} positions: where they are full it goes on with the last"
            f" {limit // 2} tokens in view"
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
        say(text)


class _Shown:
    """Texts on standard output as they come: one as it is, of several whole lines with a number.

    Args:
      texts: what they begin with.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._waiting = [""] * len(texts)
        for n, text in enumerate(texts):
            self.add(n, text)

    def add(self, number: int, more: str) -> None:
        """Goes on with one of the texts."""
        if len(self._waiting) == 1:
            print(more, end="", flush=True)
            return
        *lines, self._waiting[number] = (self._waiting[number] + more).split("\n")
        for line in lines:
            print(f"{1 + number}| {line}", flush=True)

    def end(self) -> None:
        """Shows what is left of each."""
        if len(self._waiting) == 1:
            print()
            return
        for number, rest in enumerate(self._waiting, 1):
            if rest:
                print(f"{number}| {rest}")
