"""A stage as pure functions: forward with its residuals, and backward, whole (B) or in two (I, W).

`jax.vjp` of the stage is traced once. Its residual leaves fall into four sorts, and only the last
is kept between F and B:

  weight    a parameter itself: B reads it where it lives
  context   a slice of the batch, the key: B reads it again
  derived   depends on parameters only (a transpose, a cast), or is a random key: computed again
  kept      everything else: sits in a slot of the stash

The last layer and the loss run within B of the last stage, so that logits are never kept.

I and W are the two halves of B's jaxpr (`slicing.py`): I what the input's gradient needs, with the
loss and all recomputation, W the rest. What F kept stays until W has run; I leaves what W needs
beyond.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxpipe import jaxpr as jaxprs
from jaxpipe.slicing import Halves, halve
from jaxpipe.spec import is_float, is_key

PyTree = Any
Spec = Any
# (weights, x, context) -> y; weights are the leaves of the stage's layers in a fixed order.
StageFn = Callable[[Sequence[jax.Array], PyTree, PyTree], PyTree]
# (outputs, context) -> (loss sum, weight)
LossFn = Callable[[PyTree, PyTree], tuple[jax.Array, jax.Array]]
# (outputs, context) -> {"loss" or a metric's name: (sum, weight)}
MetricsFn = Callable[[PyTree, PyTree], dict[str, tuple[jax.Array, jax.Array]]]


SCALE = "scale"  # in a context: what the gradient of the loss starts as, where it is not 1


class Gradients(NamedTuple):
    """What B gives.

    Attributes:
      weights: (index of the weight, its gradient), a weight may occur more than once.
      x: gradients of the floating leaves of the stage's input, or empty where nobody needs them.
      loss: (sum, weight) on the last stage, else None.
    """

    weights: list[tuple[int, jax.Array]]
    x: list[jax.Array]
    loss: tuple[jax.Array, jax.Array] | None


class _Source(NamedTuple):
    """Where a residual leaf comes from in B: its sort and its place there."""

    sort: str
    place: int
    value: Any = None


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """What differs between stages, besides their functions.

    Attributes:
      body: the stage without the head.
      head: the last layer, on the last stage; else None.
      loss: of the head's outputs, on the last stage; else None.
      metrics: of the same, what an evaluation tells.
      weights: abstract weights.
      trainable: which of them take gradients.
      body_weights: indices of the weights that the body reads.
      head_weights: indices of the weights that the head reads.
      x: abstract input; on the first stage the batch's inputs, which the context holds.
      y: abstract output, before the loss.
      context: abstract context.
      is_first: whether x is read from the context.
      needs_dx: whether any layer before this stage is trained.
    """

    body: StageFn
    head: StageFn | None
    loss: LossFn | None
    metrics: MetricsFn | None
    weights: tuple[Spec, ...]
    trainable: tuple[bool, ...]
    body_weights: tuple[int, ...]
    head_weights: tuple[int, ...]
    x: Spec
    y: Spec
    context: Spec
    is_first: bool
    needs_dx: bool

    @property
    def is_last(self) -> bool:
        """Whether the stage ends in the loss."""
        return self.head is not None

    @property
    def dy(self) -> list[Spec]:
        """What comes from the next stage: gradients of the floating leaves of y."""
        return [] if self.is_last else [leaf for leaf in jax.tree.leaves(self.y) if is_float(leaf)]

    def evaluate(self, weights: Sequence[jax.Array], x: PyTree, context: Any) -> PyTree:
        """The stage's output without residuals, the head's included."""
        x = context["batch"]["inputs"] if self.is_first else x
        y = self.body(weights, x, context)
        return y if self.head is None else self.head(weights, y, context)

    def evaluate_loss(
        self, weights: Sequence[jax.Array], z: PyTree, context: Any
    ) -> tuple[jax.Array, jax.Array]:
        """(loss sum, weight) from the output of the last stage's body."""
        assert self.head is not None and self.loss is not None
        return self.loss(self.head(weights, z, context), context)


class StageCode:
    """F and B of one stage, traced once; `kept` says what a microbatch leaves in between."""

    def __init__(self, plan: StagePlan):
        self.plan = plan
        self._moving = tuple(i for i in plan.body_weights if plan.trainable[i])
        self._moving_head = tuple(i for i in plan.head_weights if plan.trainable[i])
        self._x_leaves, self._x_tree = jax.tree.flatten(plan.x)
        floats = [i for i, leaf in enumerate(self._x_leaves) if is_float(leaf)]
        self._dx = tuple(floats) if plan.needs_dx and not plan.is_first else ()
        self._trace()

    @property
    def sends_dx(self) -> bool:
        """Whether B makes an input gradient that the stage before waits for."""
        return bool(self._dx)

    # Inputs of the traced forward, flat: weights, x leaves (unless first), context leaves.

    def _trace(self) -> None:
        plan = self.plan
        specs = (list(plan.weights), [] if plan.is_first else self._x_leaves, plan.context)
        self._forward, (y, vjp) = jaxprs.trace(self._vjp_forward, *specs)
        self._y_tree = jax.tree.structure(y)
        self._num_y = self._y_tree.num_leaves
        self._vjp_tree = jax.tree.structure(vjp)
        marks = [m for m, part in zip("wxc", specs, strict=True) for _ in jax.tree.leaves(part)]
        outvars = self._forward.jaxpr.outvars
        saved = [*outvars[self._num_y :], *(outvars[: self._num_y] if plan.head else ())]
        self._classify(saved, marks)

    def _vjp_forward(self, weights: Any, x_leaves: Any, context: Any) -> Any:
        plan = self.plan
        x_leaves = jax.tree.leaves(context["batch"]["inputs"]) if plan.is_first else x_leaves

        def body(moving: Any, dx_leaves: Any) -> Any:
            merged, leaves = list(weights), list(x_leaves)
            for i, w in zip(self._moving, moving, strict=True):
                merged[i] = w
            for i, leaf in zip(self._dx, dx_leaves, strict=True):
                leaves[i] = leaf
            y = plan.body(merged, jax.tree.unflatten(self._x_tree, leaves), context)
            return [leaf for leaf in jax.tree.leaves(y) if is_float(leaf)], y

        moving = [weights[i] for i in self._moving]
        if not moving and not self._dx:
            return body([], [])[1], ()
        _, vjp, y = jax.vjp(body, moving, [x_leaves[i] for i in self._dx], has_aux=True)
        return y, vjp

    def _classify(self, saved: Sequence[Any], marks: Sequence[str]) -> None:
        jaxpr = self._forward.jaxpr
        place = {v: i for i, v in enumerate(jaxpr.invars)}
        const = dict(zip(jaxpr.constvars, self._forward.consts, strict=True))
        depends = jaxprs.sources(self._forward, marks)
        num_w, num_x = marks.count("w"), marks.count("x")
        kept: dict[Any, int] = {}
        derived: dict[Any, int] = {}

        def sort(v: Any) -> _Source:
            if not jaxprs.is_variable(v):
                return _Source("const", 0, jaxprs.literal_value(v))
            if v in const:
                return _Source("const", 0, const[v])
            if v in place and marks[place[v]] != "x":
                is_weight = marks[place[v]] == "w"
                offset = 0 if is_weight else num_w + num_x
                return _Source("weight" if is_weight else "context", place[v] - offset)
            if depends[v] <= {"w"} or (depends[v] <= {"w", "c"} and is_key(v.aval)):
                return _Source("derived", derived.setdefault(v, len(derived)))
            return _Source("kept", kept.setdefault(v, len(kept)))

        sources = [sort(v) for v in saved]
        self._residual_sources = sources[: len(saved) - (self._num_y if self.plan.head else 0)]
        self._z_sources = sources[len(self._residual_sources) :]
        self.kept = tuple(jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in kept)
        outvars = list(jaxpr.outvars)
        self._kept_outputs = [outvars.index(v) for v in kept]
        no_x = [i for i, mark in enumerate(marks) if mark != "x"]
        self._derive = jaxprs.restrict(self._forward, [outvars.index(v) for v in derived], no_x)

    def forward(self, weights: Any, x: PyTree, context: Any) -> tuple[PyTree, list[jax.Array]]:
        """`(y, kept)`. `x` is ignored on the first stage."""
        x_leaves = [] if self.plan.is_first else jax.tree.leaves(x)
        args = [*weights, *x_leaves, *jax.tree.leaves(context)]
        out = jaxprs.call(self._forward, args)
        y = jax.tree.unflatten(self._y_tree, out[: self._num_y])
        return y, [out[i] for i in self._kept_outputs]

    def backward(self, weights: Any, kept: Any, context: Any, dy: Sequence[jax.Array]) -> Gradients:
        """B: from what F kept and the gradients of the floating leaves of y to all gradients.

        On the last stage `dy` is ignored: the loss is differentiated here.
        """
        context_leaves = jax.tree.leaves(context)
        derived = self._derive([*weights, *context_leaves])
        sorts = dict(weight=weights, context=context_leaves, derived=derived, kept=kept)
        value = lambda s: s.value if s.sort == "const" else sorts[s.sort][s.place]
        grads, loss = [], None
        if self.plan.head is not None:
            z = jax.tree.unflatten(self._y_tree, [value(s) for s in self._z_sources])
            loss, grads, dy = self._loss_backward(weights, z, context)
        if not self._residual_sources and not self._moving and not self._dx:
            return Gradients(grads, [], loss)
        vjp = jax.tree.unflatten(self._vjp_tree, [value(s) for s in self._residual_sources])
        d_moving, dx = vjp(list(dy))
        return Gradients([*grads, *zip(self._moving, d_moving, strict=True)], list(dx), loss)

    @functools.cached_property
    def halves(self) -> Halves:
        """B in two: `(weights, context, kept, dy)`, flat, to loss and dx, and to weight gradients.

        Where no input gradient is wanted the first half has nothing to do.

        Raises:
          LayerError: one operation of a layer computes both, so that there is no cut.
        """
        plan = self.plan
        specs = (list(plan.weights), plan.context, list(self.kept), plan.dy)

        def run(weights: Any, context: Any, kept: Any, dy: Any) -> Any:
            found = self.backward(weights, kept, context, dy)
            return found.loss, found.x, [gradient for _, gradient in found.weights]

        closed, (loss, dx, _) = jaxprs.trace(run, *specs)
        count = len(jax.tree.leaves((loss, dx))) if self.sends_dx else 0
        names = ("free", "free", "kept", "gone")
        marks = [m for m, part in zip(names, specs, strict=True) for _ in jax.tree.leaves(part)]
        return halve(closed, range(count), marks)

    @property
    def left(self) -> tuple[Spec, ...]:
        """What I leaves for W, besides what F kept."""
        return self.halves.crossing

    def input_backward(
        self, weights: Any, kept: Any, context: Any, dy: Sequence[jax.Array]
    ) -> tuple[Gradients, list[jax.Array]]:
        """I: the input's gradient and the loss, and what W needs."""
        args = [*weights, *jax.tree.leaves(context), *kept, *dy]
        found, left = self.halves.first(args)
        has_loss = self.plan.is_last and self.sends_dx
        loss = (found[0], found[1]) if has_loss else None
        return Gradients([], found[2 if has_loss else 0 :], loss), left

    def weight_backward(
        self, weights: Any, kept: Any, context: Any, left: Sequence[jax.Array]
    ) -> Gradients:
        """W: the weights' gradients from what F kept and I left."""
        found = self.halves.second([*weights, *jax.tree.leaves(context), *kept], left)
        loss = None
        if self.plan.is_last and not self.sends_dx:
            loss, found = (found[0], found[1]), found[2:]
        return Gradients(
            list(zip([*self._moving_head, *self._moving], found, strict=True)), [], loss
        )

    def _loss_backward(self, weights: Any, z: PyTree, context: Any) -> Any:
        plan = self.plan
        moving = self._moving_head
        z_leaves, tree = jax.tree.flatten(z)
        needs_dz = bool(self._moving or self._dx)
        floats = [i for i, leaf in enumerate(z_leaves) if is_float(leaf)] if needs_dz else []

        def loss(head_weights: Any, dz_leaves: Any) -> Any:
            merged, leaves = list(weights), list(z_leaves)
            for i, w in zip(moving, head_weights, strict=True):
                merged[i] = w
            for i, leaf in zip(floats, dz_leaves, strict=True):
                leaves[i] = leaf
            return plan.evaluate_loss(merged, jax.tree.unflatten(tree, leaves), context)

        given = [weights[i] for i in moving], [z_leaves[i] for i in floats]
        total, vjp, weight = jax.vjp(loss, *given, has_aux=True)
        d_weights, dz = vjp(context.get(SCALE, jnp.ones_like(total)))
        return (total, weight), list(zip(moving, d_weights, strict=True)), dz
