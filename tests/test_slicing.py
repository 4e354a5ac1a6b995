"""A backward in two halves: together they are the whole, and neither does the other's work."""

from collections import Counter
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxpipe import jaxpr as jaxprs
from jaxpipe.errors import LayerError
from jaxpipe.slicing import Halves, halve

WIDTH, ROWS, LAYERS = 8, 3, 4
KEY = jax.random.key(0)


def layer(weights: Any, x: Any) -> Any:
    hidden = jax.nn.gelu(x @ weights["up"] + weights["bias"])
    return x + (hidden @ weights["down"]) * weights["gain"]


def weights(*lead: int) -> dict[str, jax.Array]:
    keys = jax.random.split(KEY, 4)
    shapes = dict(up=(WIDTH, 2 * WIDTH), bias=(2 * WIDTH,), down=(2 * WIDTH, WIDTH), gain=(WIDTH,))
    return {
        name: jax.random.normal(key, (*lead, *shape))
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def plain(w: Any, x: Any) -> Any:
    return layer(w, layer(w, x))


def scanned(w: Any, x: Any) -> Any:
    return lax.scan(lambda x, w: (layer(w, x), None), x, w)[0]


def scanned_backwards(w: Any, x: Any) -> Any:
    return lax.scan(lambda x, w: (layer(w, x), x.sum()), x, w, reverse=True, unroll=2)[0]


def shared_in_a_scan(w: Any, x: Any) -> Any:
    return lax.scan(lambda x, _: (layer(w, x), None), x, None, length=LAYERS)[0]


def nested(w: Any, x: Any) -> Any:
    twice = lambda x, w: (lax.scan(lambda x, _: (layer(w, x), None), x, None, length=2)[0], None)
    return lax.scan(twice, x, w)[0]


def recomputed_in_a_scan(w: Any, x: Any) -> Any:
    return lax.scan(lambda x, w: (jax.checkpoint(layer)(w, x), None), x, w)[0]


def two_scans(w: Any, x: Any) -> Any:
    return scanned(w, jnp.sin(scanned(w, x)))


@jax.custom_vjp
def doubled(w: Any, x: Any) -> Any:
    return x @ w


doubled.defvjp(
    lambda w, x: (x @ w, (w, x)), lambda kept, dy: (2 * kept[1].T @ dy, 2 * dy @ kept[0].T)
)


def by_its_own_rule(w: Any, x: Any) -> Any:
    return jax.nn.relu(doubled(w["down"], doubled(w["up"], x)))


def with_dropout(w: Any, x: Any) -> Any:
    kept = jax.random.bernoulli(jax.random.key(3), 0.5, x.shape)
    return layer(w, jnp.where(kept, layer(w, x), 0))


class Case(NamedTuple):
    """A function whose backward is cut: dx first, then the weights' gradients."""

    halves: Halves
    closed: Any
    saved: list[Any]
    dy: Any
    backward: Any

    @property
    def want(self) -> Any:
        return jax.jit(self.backward)(self.saved, self.dy)

    @property
    def whole(self) -> Any:
        return self.closed.jaxpr

    @property
    def first(self) -> Any:
        return jax.make_jaxpr(self.halves.first)([*self.saved, self.dy]).jaxpr

    @property
    def second(self) -> Any:
        _, crossing = jax.eval_shape(self.halves.first, [*self.saved, self.dy])
        return jax.make_jaxpr(self.halves.second)(self.saved, crossing).jaxpr


def cut(fn: Any, *args: Any) -> Case:
    """Cuts `vjp` of `fn(weights, x)`."""
    y, vjp = jax.vjp(fn, *args)
    saved, tree = jax.tree.flatten(vjp)

    def backward(saved: Any, dy: Any) -> Any:
        dw, dx = jax.tree.unflatten(tree, saved)(dy)
        return dx, dw

    dy = jnp.cos(y)
    closed, _ = jaxprs.trace(backward, saved, dy)
    halves = halve(closed, [0], ["kept"] * len(saved) + ["gone"])
    return Case(halves, closed, saved, dy, backward)


def work(jaxpr: Any) -> Counter[str]:
    """How often each primitive runs, loops included."""
    found: Counter[str] = Counter()
    for eqn in jaxpr.eqns:
        name, times = eqn.primitive.name, eqn.params.get("length", 1)
        inner = [getattr(p, "jaxpr", p) for p in eqn.params.values() if hasattr(p, "eqns")]
        found[name] += not inner
        for body in inner:
            found += Counter({k: v * times for k, v in work(body).items()})
    return found


X = jax.random.normal(KEY, (ROWS, WIDTH))
CASES = dict(
    plain=(plain, weights()),
    jitted=(jax.jit(plain), weights()),
    recomputed=(jax.checkpoint(plain), weights()),
    scanned=(scanned, weights(LAYERS)),
    scanned_backwards=(scanned_backwards, weights(LAYERS)),
    shared_in_a_scan=(shared_in_a_scan, weights()),
    recomputed_in_a_scan=(recomputed_in_a_scan, weights(LAYERS)),
    nested=(nested, weights(LAYERS)),
    two_scans=(two_scans, weights(LAYERS)),
    by_its_own_rule=(by_its_own_rule, weights()),
    with_dropout=(with_dropout, weights()),
)
# What others hold too, though less at once.
COMBINED = ("jitted", "shared_in_a_scan", "two_scans", "with_dropout")


@pytest.mark.parametrize(
    "name",
    [pytest.param(x, marks=[pytest.mark.slow] if x in COMBINED else []) for x in CASES],
)
def test_both_halves_give_what_the_whole_gives(name: str):
    case = cut(*CASES[name], X)
    (dx,), crossing = jax.jit(case.halves.first)([*case.saved, case.dy])
    dw = jax.jit(case.halves.second)(case.saved, crossing)
    for got, want in zip([dx, *dw], jax.tree.leaves(case.want), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


# Matrix products of I and of W. A product that is computed again stands where it is needed first:
# the last one of a layer only for the gradient of `gain`, so in W.
PRODUCTS = dict(
    plain=(4, 4), jitted=(4, 4), with_dropout=(4, 4), recomputed=(4 + 3, 4 + 1),
    scanned=(8, 8), scanned_backwards=(8, 8), shared_in_a_scan=(8, 8),
    recomputed_in_a_scan=(8 + 4, 8 + 4), nested=(16, 16), two_scans=(16, 16),
    by_its_own_rule=(2, 2),
)  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_no_matrix_product_is_computed_twice(name: str):
    case = cut(*CASES[name], X)
    products = lambda jaxpr: work(jaxpr)["dot_general"]
    assert (products(case.first), products(case.second)) == PRODUCTS[name]
    assert products(case.whole) == sum(PRODUCTS[name])


def test_a_scan_is_cut_into_two():
    case = cut(*CASES["scanned"], X)
    scans = lambda jaxpr: sum(eqn.primitive.name == "scan" for eqn in jaxpr.eqns)
    assert (scans(case.whole), scans(case.first), scans(case.second)) == (1, 1, 1)


@pytest.mark.parametrize("scan", [False, True])
def test_sums_are_taken_in_the_first_half_where_less_passes_then(scan: bool):
    def fn(scale: Any, x: Any) -> Any:
        normed = (x - x.mean(-1, keepdims=True)) * lax.rsqrt(x.var(-1, keepdims=True) + 1e-6)
        return normed * scale

    if scan:
        case = cut(
            lambda w, x: lax.scan(lambda x, w: (fn(w, x), None), x, w)[0], jnp.ones((4, 8)), X
        )
    else:
        case = cut(fn, jnp.ones(8), X)
    assert sum(spec.size for spec in case.halves.crossing) == (32 if scan else 8)


def test_a_product_stays_where_it_is_though_its_result_is_small():
    def fn(w: Any, x: Any) -> Any:
        return jnp.sin(x @ w)

    case = cut(fn, jnp.ones((2, 2)), jnp.ones((100, 2)))
    assert work(case.second)["dot_general"] == 1
    assert [spec.shape for spec in case.halves.crossing] == [(100, 2)]


def test_what_depends_on_weights_alone_is_computed_again_and_not_passed():
    def fn(w: Any, x: Any, dy: Any) -> Any:
        square = w @ w
        return jnp.sin(dy @ square), x.T @ dy + square

    specs = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((4, 4), (100, 4), (100, 4))]
    halves = halve(jaxprs.trace(fn, *specs)[0], [0], ["free", "kept", "gone"])
    assert [spec.shape for spec in halves.crossing] == [(100, 4)]  # dy


def test_a_first_half_that_nobody_wants_only_passes_on():
    _, vjp = jax.vjp(plain, weights(), X)
    saved, tree = jax.tree.flatten(vjp)
    backward = lambda saved, dy: jax.tree.unflatten(tree, saved)(dy)[0]
    closed, _ = jaxprs.trace(backward, saved, X)
    halves = halve(closed, [], ["kept"] * len(saved) + ["gone"])
    outputs, crossing = halves.first([*saved, X])
    assert outputs == [] and len(crossing) == 1 and crossing[0] is X
    for got, want in zip(
        halves.second(saved, crossing), jax.tree.leaves(backward(saved, X)), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_cut_is_named_with_its_layer():
    def branches(w: Any, x: Any) -> Any:
        with jax.named_scope("03_Router"):
            return lax.cond(x[0, 0] > 0, lambda w, x: x @ w, lambda w, x: x @ (2 * w), w, x)

    with pytest.raises(LayerError, match=r"03_Router.*one `cond`.*cannot be cut into I and W"):
        cut(branches, jnp.ones((WIDTH, WIDTH)), X)


def test_flax_layers_are_cut():
    attention = nn.MultiHeadDotProductAttention(num_heads=2)
    params = jax.jit(attention.init)(KEY, X[None])
    case = cut(lambda p, x: attention.apply(p, x[None])[0], params, X)
    assert work(case.second)["dot_general"] == 4  # query, key, value, out
