"""What the network is."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from jaxpipe.config.ranges import below, either, nearest_multiples, no_share, not_positive
from jaxpipe.errors import ConfigError

_BYTES = 256
_MULTIPLE = 64  # of ids that there is room for: any usual number of tensor ranks divides it
# Fields that some networks have no use for.
_ONLY = {
    "kv_heads": ("llama",),
    "positions": ("gpt",),
    "rotary_theta": ("llama",),
    "patch_size": ("vit",),
    "pooling": ("vit",),
    "classes": ("vit",),
    "vocab_size": ("gpt", "llama"),
    "tied": ("gpt", "llama"),
}


@dataclass(frozen=True)
class ModelConfig:
    """The network: it reads tokens and predicts the next ones, or images and predicts classes."""

    network: Literal["gpt", "llama", "vit"] = "gpt"
    """gpt; or llama: RMSNorm, rotary positions, grouped-query attention, SwiGLU; or vit, a Vision
    Transformer for images out of arrays."""
    layers: int = 8
    """Transformer blocks; with the embedding and the head the pipeline has this many layers + 2."""
    width: int = 128
    """Features per position, or patch; a multiple of heads."""
    heads: int = 4
    """Attention heads per block."""
    kv_heads: int | None = None
    """For llama: heads of keys and values, of which heads is a multiple; null: as many as heads."""
    hidden: int | None = None
    """Hidden features of a block's MLP; for gpt and vit a multiple of width. null: 4 x width,
    and the multiple of 32 next to 8/3 of the width for llama."""
    positions: int | None = None
    """For gpt: positions that are learned, at least data.sequence_length; null: as many as that."""
    rotary_theta: float | None = None
    """For llama: the base of the rotary positions; null: 10000."""
    norm_eps: float | None = None
    """What norms add to the variance; null: 1e-6, for llama 1e-5."""
    patch_size: int | None = None
    """For vit: height and width of a patch, in pixels; null: 4."""
    pooling: Literal["class", "mean"] | None = None
    """For vit: what the head reads: class, a token beside the patches, or mean, of the patches;
    null: class."""
    classes: int | None = None
    """For vit: classes that there is room for; null: as many as the data have, filled in by a
    run."""
    dropout: float = 0.0
    """Probability of dropping an activation in training, 0 to 1 (1 excluded)."""
    vocab_size: int | None = None
    """For gpt and llama: token ids that there is room for; null: as many as the data have, or some
    more, up to the next multiple of 64. A run fills it in."""
    tied: bool = False
    """Whether the output shares the embedding's vectors, although they lie on different ranks."""
    start_from: str | None = None
    """A checkpoint whose parameters the run starts from, or the folder of a run, or one that
    `jaxpipe import` wrote: then the newest there. null: fresh parameters."""

    FREE = ()

    @property
    def num_kv_heads(self) -> int:
        """Heads of keys and values of a llama."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def hidden_features(self) -> int:
        """Of a block's MLP; see arXiv:2302.13971, 2.2, for a llama's."""
        if self.hidden is not None:
            return self.hidden
        return -(-8 * self.width // 96) * 32 if self.network == "llama" else 4 * self.width

    @property
    def num_layers(self) -> int:
        """Layers of the pipeline: the embedding, the blocks and the head.

        Where these are tied, norms and positions are layers of their own.
        """
        more = 0 if not self.tied else 2 if self.network == "gpt" else 1
        return self.layers + 2 + more

    def vocabulary(self, ids: int = _BYTES) -> int:
        """Room for so many token ids.

        >>> ModelConfig().vocabulary(), ModelConfig().vocabulary(50257)
        (256, 50304)
        """
        return -(-ids // _MULTIPLE) * _MULTIPLE if self.vocab_size is None else self.vocab_size

    def with_room(self, count: int | None) -> "ModelConfig":
        """The same with room for so many ids or classes, if that is left to the data.

        Args:
          count: how many the data have; None where their targets are numbers.

        Raises:
          ConfigError: it has room for fewer, or predicts classes where there are none.
        """
        if count is None:
            raise ConfigError(
                f"data.path: the targets are floats, but model.network = {self.network!r} predicts"
                " classes; expected integers."
            )
        if self.reads == "tokens":
            name, what, room = "vocab_size", "ids", self.vocabulary(count)
        else:
            name, what, room = "classes", "classes", self.classes or count
        if room < count:
            raise ConfigError(
                f"model.{name}: got {room}, expected room for the data's {count} {what} at least."
                " Set it to null for as much as they need."
            )
        return dataclasses.replace(self, **{name: room})

    @property
    def reads(self) -> Literal["tokens", "images"]:
        """What its inputs are."""
        return "images" if self.network == "vit" else "tokens"

    def problems(self) -> Iterator[str]:
        """What is wrong with these settings, whatever the others are; a line each."""
        sizes = {
            "model.layers": self.layers,
            "model.width": self.width,
            "model.heads": self.heads,
            "model.kv_heads": self.kv_heads,
            "model.hidden": self.hidden,
            "model.positions": self.positions,
            "model.patch_size": self.patch_size,
        }
        yield from below(1, sizes)
        yield from below(2, {"model.vocab_size": self.vocab_size, "model.classes": self.classes})
        yield from no_share({"model.dropout": self.dropout})
        yield from not_positive(
            {"model.rotary_theta": self.rotary_theta, "model.norm_eps": self.norm_eps}
        )
        if min(self.width, self.heads) > 0 and self.width % self.heads:
            yield (
                f"model.width: got {self.width}, which {self.heads} heads do not divide; try width"
                f" {either(nearest_multiples(self.width, self.heads))}, or another number of heads."
            )
        hidden = self.hidden_features
        if self.network != "llama" and min(self.width, hidden) > 0 and hidden % self.width:
            near = either(nearest_multiples(hidden, self.width))
            yield (
                f"model.hidden: got {hidden}, for {self.network} a multiple of model.width; try"
                f" {near}."
            )
        for name, networks in _ONLY.items():
            if self.network not in networks and (got := getattr(self, name)) not in (None, False):
                yield (
                    f"model.{name}: got {got!r}; {self.network} has none, only"
                    f" {' and '.join(networks)}. Leave it out."
                )
        yield from self._kv_problems()

    def _kv_problems(self) -> Iterator[str]:
        heads, kv_heads = self.heads, self.num_kv_heads
        if self.network != "llama":
            return
        if min(heads, kv_heads) > 0 and heads % kv_heads:
            near = either(nearest_multiples(heads, kv_heads))
            yield (
                f"model.heads: got {heads}, no multiple of model.kv_heads = {kv_heads}; try {near}."
            )
        elif min(heads, kv_heads, self.width) > 0 and self.width % (2 * heads):
            near = either(nearest_multiples(self.width, 2 * heads))
            yield (
                f"model.width: got {self.width}; llama's rotary positions take an even number of"
                f" features for each of {heads} heads; try {near}."
            )
