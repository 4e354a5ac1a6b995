"""Functions of whole trees on ranks that hold parts: same numbers, and no whole array travels."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo import largest_error

import jaxpipe as jp
from jaxpipe.errors import OptimizerError
from jaxpipe.spread import LARGEST_EXCHANGE, Held, Spread
from jaxpipe.storage import Layout, LeafSpec, Placed, build_layout, logical, place, specs

Tree = dict[str, Any]


def layout_of(tree: Tree, num_ranks: int) -> Layout:
    """Each leaf on the rank that its layer's name ends in; on no rank where that is '-'."""
    rank = lambda path: None if path[0].key[-1] == "-" else int(path[0].key[-1])
    leaves = [
        LeafSpec(jax.tree_util.keystr(path), np.shape(x), np.asarray(x).dtype, rank(path))
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    ]
    return build_layout(jax.tree.structure(tree), leaves, num_ranks)


def spread_jaxpr_and_run(
    fn: Callable[..., Any], trees: Sequence[Tree], out: Tree, num_ranks: int
) -> tuple[str, Tree]:
    """`fn` spread over ranks: the traced program, and its result."""
    layouts, out_layout = [layout_of(t, num_ranks) for t in trees], layout_of(out, num_ranks)
    mesh = jp.make_mesh(pipe=num_ranks)
    spread = Spread(lambda *trees: (fn(*trees),), layouts, [out_layout], "fn")

    def local(*placed: Placed) -> Placed:
        held = [Held({k: x[0] for k, x in p.buffers.items()}, list(p.shared)) for p in placed]
        rows = {name: jnp.zeros(b.shape, b.dtype) for name, b in out_layout.buffers.items()}
        (result,), _ = spread(held, [Held(rows, [])])
        buffers = {name: row[None] for name, row in result.rows.items()}
        return Placed(buffers, tuple(result.shared), out_layout)

    run = jax.shard_map(
        local, mesh=mesh, in_specs=tuple(map(specs, layouts)), out_specs=specs(out_layout),
        check_vma=False,
    )  # fmt: skip
    placed = [place(layout, mesh, t) for layout, t in zip(layouts, trees, strict=True)]
    assert out_layout.num_ranks == num_ranks
    return str(jax.make_jaxpr(run)(*placed)), logical(jax.jit(run)(*placed))


LARGE = (3, LARGEST_EXCHANGE)
RNG = np.random.default_rng(0)
draw = lambda *shape: RNG.normal(size=shape).astype(np.float32)
TREE: Tree = {
    "embed0": dict(w=draw(*LARGE), b=draw(5)),
    "block0": dict(w=draw(4, 4)),
    "block1": dict(w=draw(4, 4)),
    "head1": dict(w=draw(*LARGE)),
    "step-": np.float32(3),
}
OUT = {name: leaves for name, leaves in TREE.items() if name != "step-"}


def travels(program: str, shape: tuple[int, ...]) -> bool:
    shown = f"f32[{','.join(map(str, shape))}]"
    return any("psum" in line and shown in line.split("psum")[0] for line in program.splitlines())


def test_leaf_by_leaf_nothing_travels():
    fn = lambda t: jax.tree.map(jnp.sin, {name: t[name] for name in OUT})
    program, got = spread_jaxpr_and_run(fn, [TREE], OUT, 2)
    assert "psum" not in program
    assert largest_error(got, fn(TREE)) < 1e-6


def test_what_no_rank_owns_is_known_to_all():
    fn = lambda t: jax.tree.map(lambda x: x * (1 + t["step-"]), {name: t[name] for name in OUT})
    program, got = spread_jaxpr_and_run(fn, [TREE], OUT, 2)
    assert "psum" not in program
    assert largest_error(got, fn(TREE)) < 1e-6


def test_norms_travel_and_arrays_stay():
    def clip(t: Tree) -> Tree:
        t = {name: t[name] for name in OUT}
        norm = jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(t)))
        scaled = jax.tree.map(lambda x: x / norm, t)
        again = sum(jnp.sum(jnp.abs(x)) for x in jax.tree.leaves(scaled))  # a second exchange
        return jax.tree.map(lambda x: x * again, scaled)

    program, got = spread_jaxpr_and_run(clip, [TREE], OUT, 2)
    assert program.count("psum") == 10 and not travels(program, LARGE)  # five sums, twice
    # Sums of 12,288 squares differ in order between the programs: a few units of 6e-8.
    assert largest_error(got, clip(TREE)) < 1e-6


def test_results_may_belong_to_no_rank():
    fn = lambda t: {"sum-": jnp.sum(t["embed0"]["w"]) + jnp.sum(t["head1"]["w"]), "k-": jnp.ones(3)}
    _, got = spread_jaxpr_and_run(fn, [TREE], {"sum-": np.float32(0), "k-": np.ones(3, "f")}, 2)
    np.testing.assert_allclose(got["sum-"], fn(TREE)["sum-"], rtol=1e-4)
    np.testing.assert_array_equal(got["k-"], np.ones(3))


def test_small_leaves_may_mix_over_more_ranks():
    tree = {f"layer{r}": draw(8, 8) for r in range(4)}
    fn = lambda t: {name: x + sum(t.values()) for name, x in t.items()}
    _, got = spread_jaxpr_and_run(fn, [tree], tree, 4)
    assert largest_error(got, fn(tree)) < 1e-6


def test_a_small_value_goes_to_where_the_large_one_is():
    fn = lambda t: {"head1": dict(w=t["head1"]["w"] * t["embed0"]["b"][0])}
    program, got = spread_jaxpr_and_run(fn, [TREE], {"head1": TREE["head1"]}, 2)
    assert largest_error(got, fn(TREE)) < 1e-6
    assert travels(program, (5,)) or travels(program, ())
    assert not travels(program, LARGE)


@pytest.mark.parametrize(
    "fn",
    [
        lambda t: {"head1": dict(w=t["head1"]["w"] + t["embed0"]["w"])},
        lambda t: {"head1": t["embed0"] | dict(b=t["embed0"]["b"])},
    ],
)
def test_whole_arrays_of_two_ranks_are_not_mixed(fn: Any):
    out = jax.tree.map(np.asarray, fn(TREE))
    with pytest.raises(OptimizerError, match=r"fn mixes whole arrays.*float32\[3, 4096\] of one"):
        spread_jaxpr_and_run(fn, [TREE], out, 2)


def test_a_function_of_two_trees():
    fn = lambda a, b: jax.tree.map(lambda x, y: x - 2 * y, a, b)
    tree = {"a0": draw(7), "b1": draw(3), "c1": draw(2)}
    _, got = spread_jaxpr_and_run(fn, [tree, tree], tree, 2)
    assert largest_error(got, jax.tree.map(np.negative, tree)) < 1e-6
