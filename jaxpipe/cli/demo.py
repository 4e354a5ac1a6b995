"""`jaxpipe demo`."""

import logging
from dataclasses import dataclass
from pathlib import Path

from jaxpipe.cli.train import stop_signals
from jaxpipe.simulate_devices import simulate_devices


@dataclass(frozen=True)
class RunDemo:
    """Train a small GPT over four simulated devices for less than a minute; nothing is downloaded.

    It reads a part of this Python's standard library, and says where its summary and its pictures
    are. An example: jaxpipe demo --out jaxpipe-demo
    """

    out: Path = Path("jaxpipe-demo")
    """The folder of the run; an earlier demonstration there is moved aside."""
    steps: int = 150
    """Steps to train for; with more it comes closer to what the network can do."""

    def run(self) -> int:
        """Trains, says what to look at, and returns the exit code."""
        import jax  # not before it is asked for

        jax.config.update("jax_platforms", "cpu")  # the same everywhere
        simulate_devices(4)
        from jaxpipe.demo import NUM_DEVICES, demonstrate

        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax, of files not meant to be there
        with stop_signals() as asked:
            outcome, folder, picture = demonstrate(
                self.out, steps=self.steps, should_stop=lambda: bool(asked)
            )
        if outcome.ending == "interrupted":
            print(f"interrupted after step {outcome.step}")
            return 0
        loss, bigram = outcome.held_out_loss, outcome.bigram_loss or 0.0
        verdict = "less" if loss < bigram else "not yet less"
        print(f"""
{NUM_DEVICES} pipeline stages have learnt {outcome.step} batches. On files that they have not seen
they lose {loss:.3f} nats per byte: {verdict} than the {bigram:.3f} of a table of byte pairs, which
has read all of the training text. Guessing would lose 5.545.

summary        {folder / "summary.html"}
one step       {folder / "trace.json"} (open it at https://ui.perfetto.dev)
the schedule   {picture}
its settings   {folder / "config.yaml"}

next: jaxpipe train {folder / "config.yaml"} --run.name longer --trainer.steps 2000
      jaxpipe draw --compare gpipe 1f1b zb-h1 zb-v
      jaxpipe doctor""")
        return 0
