"""What a run is: one frozen dataclass per component, every field documented.

The text under a field is its help on the command line too. `Config()` is a complete run; a YAML
file (`jaxpipe.config.read`) and the command line change single fields of it.
"""

from dataclasses import dataclass, field
from typing import Literal

from jaxpipe.data.config import DataConfig

_VOCABULARY = 256  # bytes
_MULTIPLE = 64  # of ids that there is room for: any usual number of tensor ranks divides it


@dataclass(frozen=True)
class ModelConfig:
    """The network, which reads tokens and predicts the next ones."""

    network: Literal["gpt", "llama"] = "gpt"
    """gpt; or llama: RMSNorm, rotary positions, grouped-query attention, SwiGLU."""
    layers: int = 8
    """Transformer blocks; with the embedding and the head the pipeline has this many layers + 2."""
    width: int = 128
    """Features per position; a multiple of heads."""
    heads: int = 4
    """Attention heads per block."""
    kv_heads: int | None = None
    """For llama: heads of keys and values, of which heads is a multiple; null: as many as heads."""
    dropout: float = 0.0
    """Probability of dropping an activation in training, 0 to 1 (1 excluded)."""
    vocab_size: int | None = None
    """Token ids that there is room for; null: as many as the data have, or some more, up to the
    next multiple of 64. A run fills it in."""
    tied: bool = False
    """Whether the output shares the embedding's vectors, although they lie on different ranks."""


def kv_heads(model: ModelConfig) -> int:
    """Heads of keys and values of a llama."""
    return model.heads if model.kv_heads is None else model.kv_heads


def vocabulary(model: ModelConfig, ids: int = _VOCABULARY) -> int:
    """Room for so many token ids.

    >>> vocabulary(ModelConfig()), vocabulary(ModelConfig(), 50257)
    (256, 50304)
    """
    return -(-ids // _MULTIPLE) * _MULTIPLE if model.vocab_size is None else model.vocab_size


def hidden_features(model: ModelConfig) -> int:
    """Of a llama's MLP: a multiple of 32 next to 8/3 of the width (arXiv:2302.13971, 2.2)."""
    return -(-8 * model.width // 96) * 32


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a linear warm-up and a cosine decay of the learning rate."""

    learning_rate: float = 3e-3
    """Highest learning rate, reached after the warm-up."""
    warmup_steps: int = 50
    """Steps in which the learning rate rises from near 0 to its highest."""
    final_fraction: float = 0.1
    """Learning rate of the last step, as a share of the highest, 0 to 1."""
    weight_decay: float = 0.1
    """Decay of the matrices (biases and norm scales do not decay)."""
    beta1: float = 0.9
    """Decay of the running mean of gradients, 0 to 1 (1 excluded)."""
    beta2: float = 0.95
    """Decay of the running mean of squared gradients, 0 to 1 (1 excluded)."""
    clip_norm: float | None = 1.0
    """Longest gradient, all layers taken together; longer ones are scaled down. null: never."""


@dataclass(frozen=True)
class PipelineConfig:
    """How the model is cut, placed and run."""

    ranks: int = 4
    """Places in the pipeline, each with as many stages as the schedule has chunks."""
    data: int = 1
    """Copies of the pipeline, each on its own part of a batch; devices = ranks x data x tensor."""
    tensor: int = 1
    """Devices that share each layer: its heads, hidden features and vocabulary."""
    sequence_parallel: bool = False
    """Whether these also share activations between layers, cut along time."""
    zero: int = 0
    """What copies share of a rank's state rather than each holding it (ZeRO): 0, nothing; 1, the
    optimizer's state; 2, gradients too; 3, parameters too."""
    zero_per: Literal["step", "use"] = "step"
    """How often what is shared in stages 2 and 3 is put together: once a step, or at each use."""
    microbatches: int = 8
    """Parts that a batch passes through the pipeline in."""
    schedule: str = "1f1b"
    """Which rank does what at which tick, by name; `jaxpipe draw NAME` shows it. auto: the fastest
    that a search finds for the FLOPs of the stages."""
    chunks: int | None = None
    """Stages on each rank, for interleaved, looped-bfs and interleaved-zb; null: 2 there. For auto,
    the most that it tries."""
    memory_limit: float | None = None
    """For auto: bytes that a rank may have for what backwards need of forwards; null: as much as so
    many microbatches take as there are ranks."""
    partition: str | tuple[int, ...] = "parameters"
    """How layers become stages: uniform, parameters, flops, type:REGEX, or the boundaries."""
    remat: Literal["none", "full"] | int = "none"
    """What the backward recomputes: none, full, or all but every so many layers' inputs."""
    compute_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the activations; parameters and the optimizer stay float32. float16 comes
    with a loss scale."""

    @property
    def num_devices(self) -> int:
        """Devices of the whole mesh."""
        return self.ranks * self.data * self.tensor


@dataclass(frozen=True)
class TrainerConfig:
    """How long to train, and what to say and keep on the way."""

    steps: int = 1000
    """Steps of the whole run; a resumed run goes on up to this step."""
    batch_size: int = 8
    """Samples per step, over all copies; a multiple of microbatches x data."""
    seed: int = 0
    """Seed of the parameters, of dropout and of the order of the data."""
    log_interval: int = 20
    """Steps between two lines of metrics."""
    eval_interval: int = 250
    """Steps between two evaluations on held-out text; the last step is always evaluated."""
    eval_batches: int = 32
    """Batches of held-out text per evaluation, spaced evenly, always the same."""
    checkpoint_interval: int = 250
    """Steps between two checkpoints; the last step is always saved."""
    keep_checkpoints: int = 2
    """Newest checkpoints that stay on disk, at least 2."""
    keep_interval: int | None = None
    """Checkpoints of every so many steps stay for good; null: none do."""
    keep_best: int = 0
    """How many checkpoints with the lowest held-out loss stay besides."""
    checkpoint_patience: float = 1200.0
    """Seconds that a checkpoint may take, and that processes wait there for one another."""
    most_skipped: int = 20
    """Steps in a row that may be skipped for gradients that are not finite; with one more, training
    has diverged."""
    spike: float | None = None
    """A loss of more than so many times the median of the last 20 has diverged; null: none has."""
    rollbacks: int = 0
    """How many times a run that has diverged goes back to its newest checkpoint, and on from there
    with batches that it has not seen; after that, it ends."""


@dataclass(frozen=True)
class RunConfig:
    """Where the run is written: directory/name/."""

    name: str = "gpt-stdlib"
    """Name of the run, and of its folder."""
    directory: str = "runs"
    """Folder of all runs."""


@dataclass(frozen=True)
class Config:
    """A whole run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    run: RunConfig = field(default_factory=RunConfig)
