"""Goes on with prompts: several at once, a token of each at a time."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxpipe.decoding import Decoder, Sequences
from jaxpipe.engine import Engine
from jaxpipe.errors import BatchError
from jaxpipe.mesh import DATA, PIPE, axis_size
from jaxpipe.sampling import Sampling
from jaxpipe.storage import Placed

WhenFull = Literal["error", "forget"]

_SHORTEST = 16  # tokens that a prompt, or a piece of one, is filled up to
_STEP = 64  # slots of caches come in multiples of it: other lengths then need no other program


class Generator:
    """Goes on with prompts, on the mesh of an engine, each rank with its own stages.

    Programs are compiled for a number of prompts, and for lengths in powers of two; none is
    compiled for a token, a seed or a temperature.

    Args:
      engine: it must have seen a batch, so that it knows its stages; `partition(batch)` does.
      params: `state.params`. A copy of them is made in the dtype of the computation.
      tokens_per_call: tokens that each call of a program makes, of every sequence: more cost less
        to start, and come later.
    """

    def __init__(self, engine: Engine, params: Placed, *, tokens_per_call: int = 8) -> None:
        if tokens_per_call < 1:
            raise BatchError(f"tokens_per_call: got {tokens_per_call}, expected at least 1.")
        self._engine, self.tokens_per_call = engine, tokens_per_call
        self._params, self._weights = params, None

    @functools.cached_property
    def max_positions(self) -> int | None:
        """How many positions the model knows, or None where there is no end."""
        return self._engine.decoder(num_microbatches=1, rows=1, capacity=_STEP).shapes.max_positions

    def __call__(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, **options: Any
    ) -> list[list[int]]:
        """What follows each prompt, as token ids, all at once; arguments as for `stream`."""
        found: list[list[int]] = [[] for _ in prompts]
        for tokens in self.stream(prompts, max_new_tokens, **options):
            for text, token in zip(found, tokens, strict=True):
                text += [] if token is None else [token]
        return found

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        *,
        sampling: Sampling | None = None,
        end: int | None = None,
        when_full: WhenFull = "error",
    ) -> Iterator[list[int | None]]:
        """Yields a token of each sequence at a time, as they come.

        Args:
          prompts: token ids, at least one each; they may differ in length.
          max_new_tokens: how many follow each prompt, at most.
          sampling: how they are chosen; by default drawn as the model has it.
          end: the id that ends a text, which then has no more tokens; it is yielded.
          when_full: what is done where a model has learned so many positions and no more: "error"
            refuses what would need others; "forget" goes on with the later half of what it had in
            view as a new prompt. Where rotations tell positions there is no such end, though a
            model may be at a loss beyond the lengths it has seen.

        Yields:
          For each prompt a token id, or None where its text has ended.

        Raises:
          BatchError: a prompt is empty, has ids that the model does not know or is too long.
        """
        how = Sampling() if sampling is None else sampling
        texts = [list(map(int, prompt)) for prompt in prompts]
        decoder = self._decoder(texts, max_new_tokens, when_full)
        if self._weights is None:
            self._weights = decoder.weights(self._params)
        return self._steps(decoder, texts, max_new_tokens, how, end)

    def _steps(
        self,
        decoder: Decoder,
        texts: list[list[int]],
        left: int,
        how: Sampling,
        end: int | None,
    ) -> Iterator[list[int | None]]:
        limit = decoder.shapes.max_positions
        ended, view = [False] * len(texts), texts
        while left and not all(ended):
            span = _Span.of(view, limit, left)
            forgotten = [len(text) - len(seen) for text, seen in zip(texts, view, strict=True)]
            for tokens in self._span(decoder, view, span, how, forgotten):
                shown: list[int | None] = []
                for n, token in enumerate(tokens):
                    shown.append(None if ended[n] else token)
                    texts[n].append(token)
                    ended[n] |= token == end
                left -= 1
                yield shown
                if all(ended):
                    return
            view = texts if limit is None else [text[-_kept(limit) :] for text in texts]

    def _span(
        self,
        decoder: Decoder,
        view: list[list[int]],
        span: "_Span",
        how: Sampling,
        forgotten: list[int],
    ) -> Iterator[list[int]]:
        """Tokens after some prompts, until there is no room."""
        before = np.zeros(decoder.num_sequences, np.int32)
        before[: len(view)] = forgotten
        lengths = np.ones(decoder.num_sequences, np.int32)  # those that nobody asked for
        prompts = np.zeros((decoder.num_sequences, span.width), np.int32)
        for n, text in enumerate(view):
            lengths[n], prompts[n, : len(text)] = len(text), text
        pieces = span.pieces(decoder)
        weights = self._weights
        if weights is None:
            raise TypeError("there are no weights yet")
        state, chosen = decoder.prefill(
            weights, prompts, lengths, how, forgotten=before, pieces=pieces
        )
        count = len(view)
        yield np.asarray(chosen.tokens)[:count, 0].tolist()
        yield from self._following(decoder, weights, state, how, span.num_tokens - 1, count)

    def _following(
        self, decoder: Decoder, weights: Any, state: Sequences, how: Sampling, left: int, count: int
    ) -> Iterator[list[int]]:
        while left > 0:
            state, chosen = decoder.decode(weights, state, how, num_tokens=self.tokens_per_call)
            yield from np.asarray(chosen.tokens)[:count].T[:left].tolist()
            left -= self.tokens_per_call

    def _decoder(self, texts: list[list[int]], max_new_tokens: int, when_full: WhenFull) -> Decoder:
        """A decoder with room for it all, once that is found to be possible."""
        if not texts or not all(texts):
            raise BatchError(
                f"got {len(texts)} prompts of {[len(text) for text in texts]} tokens; expected at"
                " least one prompt, of at least one token each."
            )
        if max_new_tokens < 1:
            raise BatchError(f"max_new_tokens: got {max_new_tokens}, expected at least 1.")
        mesh = self._engine.mesh
        num_data, num_ranks = axis_size(mesh, DATA), axis_size(mesh, PIPE)
        groups = min(-(-len(texts) // num_data), num_ranks)
        rows = -(-len(texts) // (groups * num_data))
        make = lambda capacity: self._engine.decoder(
            num_microbatches=groups, rows=rows, capacity=capacity
        )
        shapes = make(_STEP).shapes
        _check_ids(texts, shapes.vocab_size)
        limit, longest = shapes.max_positions, max(map(len, texts))
        if limit is not None:
            _check_length(longest, max_new_tokens, limit, when_full)
        first = _Span.of(texts, limit, max_new_tokens)
        needed = first.capacity(longest, self.tokens_per_call)
        if first.num_tokens < max_new_tokens and limit is not None:
            later = [[0] * _kept(limit)]
            again = _Span.of(later, limit, max_new_tokens - first.num_tokens)
            needed = max(needed, again.capacity(_kept(limit), self.tokens_per_call))
        return make(-(-needed // _STEP) * _STEP)


class _Span(NamedTuple):
    """Prompts, and as many tokens after them as there are positions for.

    Attributes:
      width: of the prompts, filled up.
      num_tokens: how many follow.
    """

    width: int
    num_tokens: int

    @classmethod
    def of(cls, view: list[list[int]], limit: int | None, left: int) -> "_Span":
        longest = max(map(len, view))
        # The last token that is chosen goes into no layer.
        room = left if limit is None else limit - longest + 1
        return cls(max(_SHORTEST, 1 << (longest - 1).bit_length()), min(left, room))

    def capacity(self, longest: int, per_call: int) -> int:
        """Slots that it takes."""
        calls = -(-(self.num_tokens - 1) // per_call)
        return max(self.width, longest + calls * per_call)

    def pieces(self, decoder: Decoder) -> int:
        """Into how many pieces prompts are cut, so that each rank has one to work on."""
        wanted = -(-(1 + max(decoder.placement)) // decoder.num_microbatches)
        pieces = 1
        while pieces < wanted and self.width // (2 * pieces) >= _SHORTEST:
            pieces *= 2
        return pieces


def _kept(limit: int) -> int:
    """How many tokens stay in view where some are forgotten."""
    return max(1, limit // 2)


def _check_ids(texts: list[list[int]], vocab_size: int) -> None:
    for n, text in enumerate(texts):
        wrong = [token for token in text if not 0 <= token < vocab_size]
        if wrong:
            raise BatchError(
                f"prompt {n} holds the id {wrong[0]}, and the model knows 0 <= id < {vocab_size}."
                " Use the tokenizer that it was trained with."
            )


def _check_length(longest: int, max_new_tokens: int, limit: int, when_full: WhenFull) -> None:
    if longest > limit:
        raise BatchError(
            f"a prompt has {longest} tokens, and the model has learned {limit} positions. Leave out"
            " its beginning."
        )
    if when_full == "error" and longest + max_new_tokens - 1 > limit:
        raise BatchError(
            f"{max_new_tokens} tokens after a prompt of {longest} need"
            f" {longest + max_new_tokens - 1} positions, and the model has learned {limit}. Ask for"
            f" at most {limit - longest + 1}, or let when_full='forget' drop what came first."
        )
