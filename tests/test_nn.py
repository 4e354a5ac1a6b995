"""Layers that share the tensor axis: values and all gradients are those of the whole model."""

import dataclasses
import functools
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from jax.sharding import PartitionSpec as P

import jaxpipe as jp
from jaxpipe import losses, nn, tensor
from jaxpipe.errors import BatchError, ConfigError
from jaxpipe.models import GPTConfig, LlamaConfig, gpt, llama
from jaxpipe.models.gpt import Block
from jaxpipe.spec import zeros

KEY = jax.random.key(0)
WHOLE, TIME, LAST = P(), P(None, "tensor"), P(None, None, "tensor")
SEGMENTS = jnp.array([[0] * 3 + [4] * 5, [2] * 8])


def on_ranks(fn: Callable[..., Any], ranks: int, in_specs: Any, out_specs: Any) -> Any:
    mesh = jp.make_mesh(tensor=ranks)
    return jax.jit(
        jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    )


def specs_of(module: linen.Module, *args: Any, **kwargs: Any) -> Any:
    """How each parameter is cut, from the boxes that the module puts around them."""
    init = functools.partial(module.init, {"params": KEY, "dropout": KEY}, **kwargs)
    return linen.get_partition_spec(jax.eval_shape(init, *args)).get("params", {})


def perturbed(tree: Any, scale: float) -> Any:
    """Parameters in general position: no zeros and no ones."""
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: np.asarray(x) + scale * random.standard_normal(x.shape, np.float32), tree
    )


def compare(fn: Callable[..., Any], args: Any, in_specs: Any, out_specs: Any, ranks: int) -> float:
    """The largest error of what the ranks compute, each leaf relative to its largest value.

    Cut leaves are put together, and of whole ones every rank's is seen.
    """
    each = lambda tree: jax.tree.map(lambda spec: spec if tuple(spec) else P("tensor"), tree)
    front = lambda x, spec: x if tuple(spec) else x[None]

    def body(*args: Any) -> Any:
        return jax.tree.map(front, fn(*args), out_specs)

    got = on_ranks(body, ranks, in_specs, each(out_specs))(*args)
    want = jax.tree.map(
        lambda x, spec: x if tuple(spec) else np.broadcast_to(x, (ranks, *x.shape)),
        jax.jit(fn)(*args),
        out_specs,
    )
    assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, want)
    return zoo.largest_error(got, want)


class Case(NamedTuple):
    """A layer, what it takes and how that and what it gives are cut."""

    make: Callable[[bool], linen.Module]
    takes: P = WHOLE
    gives: P = WHOLE
    takes_sequence: P = TIME
    gives_sequence: P = TIME
    kwargs: dict[str, Any] = {}  # noqa: RUF012


PACKED = dict(segment_ids=SEGMENTS)
GROUPED: dict[str, Any] = dict(num_heads=8, num_kv_heads=4, rotary_theta=100.0, use_bias=False)
CASES = dict(
    column=Case(
        lambda sp: nn.ColumnDense(24, sequence_parallel=sp),
        gives=LAST,
        gives_sequence=LAST,
    ),
    row=Case(
        lambda sp: nn.RowDense(24, sequence_parallel=sp, activation=jax.nn.gelu),
        takes=LAST,
        takes_sequence=LAST,
    ),
    gelu=Case(lambda sp: nn.GeluMLP(24, sequence_parallel=sp)),
    swiglu=Case(lambda sp: nn.SwiGLU(24, sequence_parallel=sp)),
    attention=Case(lambda sp: nn.Attention(8, sequence_parallel=sp)),
    packed=Case(lambda sp: nn.Attention(8, sequence_parallel=sp), kwargs=PACKED),
    grouped=Case(lambda sp: nn.Attention(**GROUPED, sequence_parallel=sp)),
    grouped_packed=Case(
        lambda sp: nn.Attention(**GROUPED, sequence_parallel=sp), kwargs=PACKED
    ),
    layer_norm=Case(lambda sp: nn.LayerNorm(sequence_parallel=sp)),
    rms_norm=Case(lambda sp: nn.RMSNorm(sequence_parallel=sp)),
    dropout=Case(lambda sp: nn.Dropout(0.5, sequence_parallel=sp), kwargs=dict(train=True)),
)  # fmt: skip


def every_layer() -> Iterator[Any]:
    """By default each layer with and without `sequence_parallel`, on 2 or on 4 ranks.

    Of attention any two of packed, grouped and `sequence_parallel`.
    """
    third = {("attention", True), ("packed", False), ("grouped", False), ("grouped_packed", True)}
    for i, (name, cut) in enumerate(itertools.product(CASES, (False, True))):
        usual = (2, 4, 4, 2)[i % 4]
        for ranks in (2, 4):
            often = ranks == usual and (name, cut) not in third
            marks = () if often else pytest.mark.slow
            yield pytest.param(name, cut, ranks, marks=marks)


@pytest.mark.parametrize(("name", "sequence_parallel", "ranks"), list(every_layer()))
def test_a_layer_is_the_same_on_several_ranks(name: str, sequence_parallel: bool, ranks: int):
    case = CASES[name]
    module = case.make(sequence_parallel)
    takes = case.takes_sequence if sequence_parallel else case.takes
    gives = case.gives_sequence if sequence_parallel else case.gives
    x = jax.random.normal(jax.random.key(1), (2, 8, 32))
    rngs = {"params": KEY, "dropout": KEY}
    params = perturbed(linen.unbox(module.init(rngs, x, **case.kwargs)).get("params", {}), 0.1)
    specs = specs_of(module, x, **case.kwargs)

    def run(params: Any, x: jax.Array) -> Any:
        apply: Any = functools.partial(module.apply, rngs={"dropout": KEY}, **case.kwargs)
        y, back = jax.vjp(lambda p, x: apply({"params": p}, x), params, x)
        return y, *back(jnp.cos(y))

    assert compare(run, (params, x), (specs, takes), (gives, specs, takes), ranks) < 1e-6


@pytest.mark.parametrize(
    ("sequence_parallel", "ranks"),
    [
        *[(False, 2), (True, 4)],
        *[pytest.param(*case, marks=pytest.mark.slow) for case in [(False, 4), (True, 2)]],
    ],
)
def test_an_embedding_is_the_same_on_several_ranks(sequence_parallel: bool, ranks: int):
    module = nn.Embedding(16, 8, sequence_parallel)
    tokens = jax.random.randint(KEY, (2, 8), 0, 16)
    params = linen.unbox(module.init(KEY, tokens))["params"]
    specs = specs_of(module, tokens)
    assert specs == {"embedding": P("tensor", None)}
    cut = TIME if sequence_parallel else WHOLE

    apply: Any = module.apply

    def looked_up(params: Any) -> Any:
        y, back = jax.vjp(lambda p: apply({"params": p}, tokens), params)
        return y, *back(jnp.cos(y))

    assert compare(looked_up, (params,), (specs,), (cut, specs), ranks) < 1e-6

    def attended(params: Any, x: Any) -> Any:
        attend: Any = functools.partial(module.apply, method="attend")
        y, back = jax.vjp(lambda p, x: attend({"params": p}, x), params, x)
        return y, *back(jnp.cos(y))

    x = jax.random.normal(KEY, (2, 8, 8))
    assert compare(attended, (params, x), (specs, cut), (LAST, specs, cut), ranks) < 1e-6


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8])
def test_ids_beyond_the_vocabulary_are_nan_on_any_ranks(dtype: Any):
    tokens = jnp.array([[0, 3, 4, 7, 8, 200, 5, 5]], dtype)
    if dtype == jnp.int32:
        tokens = tokens.at[0, 6:].set(jnp.array([-1, -9]))
    table = jax.random.normal(KEY, (8, 4))
    want = nn.lookup(table, tokens)
    assert jnp.isnan(want[0, 4:6]).all()
    for sequence_parallel in (False, True):
        look = functools.partial(nn.lookup, tokens=tokens, sequence_parallel=sequence_parallel)
        out = TIME if sequence_parallel else WHOLE
        got = on_ranks(look, 4, P("tensor"), out)(table)
        np.testing.assert_array_equal(got, want)


def test_dropout_is_that_of_flax():
    x = jax.random.normal(KEY, (4, 6))
    rngs = {"dropout": KEY}
    want = linen.Dropout(0.3, deterministic=False).apply({}, x, rngs=rngs)
    np.testing.assert_array_equal(nn.Dropout(0.3).apply({}, x, train=True, rngs=rngs), want)
    assert nn.Dropout(0.3).apply({}, x, rngs=rngs) is x


# The loss


def loss_batch(**fields: Any) -> dict[str, Any]:
    random = np.random.default_rng(3)
    targets = random.integers(0, 8, (2, 5)).astype(np.int32)
    weights = random.random((2, 5)).astype(np.float32)
    return dict(targets=targets, weights=weights) | fields


@functools.cache
def loss_and_gradient(ranks: int, weighted: bool) -> Any:
    """Of logits: total, weight and gradient, on whole logits (0 ranks) or on cut ones."""
    batch = loss_batch()
    batch = batch if weighted else dict(targets=batch["targets"])
    cross_entropy = nn.cross_entropy if ranks else losses.cross_entropy

    def run(logits: Any) -> Any:
        total, back, weight = jax.vjp(lambda x: cross_entropy(x, batch), logits, has_aux=True)
        return total, weight, *back(jnp.ones(()))

    return on_ranks(run, ranks, LAST, (P(), P(), LAST)) if ranks else jax.jit(run)


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("scale", [1, 100])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_of_cut_logits_is_that_of_whole_ones(ranks, scale, weighted):
    logits = scale * jax.random.normal(KEY, (2, 5, 8))
    want = loss_and_gradient(0, weighted)(logits)
    assert zoo.largest_error(loss_and_gradient(ranks, weighted)(logits), want) < 1e-6


@functools.cache
def cut_gradient() -> Any:
    grads = jax.value_and_grad(lambda x, batch: nn.cross_entropy(x, batch)[0])
    return on_ranks(grads, 4, (LAST, P()), (P(), LAST))


@pytest.mark.parametrize("target", [-1, -101, 8, 2**31 - 1, -(2**31)])
def test_cut_logits_know_which_targets_are_no_classes(target: int):
    logits, run = jax.random.normal(KEY, (1, 2, 8)), cut_gradient()
    targets = jnp.array([[1, target]], jnp.int32)
    total, gradient = run(logits, dict(targets=targets))
    assert jnp.isnan(total)
    assert jnp.isnan(gradient[0, 1]).all() and jnp.isfinite(gradient[0, 0]).all()
    total, gradient = run(logits, dict(targets=targets, weights=jnp.array([[1.0, 0.0]])))
    want = losses.cross_entropy(logits[:, :1], dict(targets=targets[:, :1]))[0]
    np.testing.assert_allclose(total, want, rtol=1e-6)
    assert (gradient[0, 1] == 0).all()


def test_cut_logits_of_minus_infinity_are_impossible_classes():
    logits = jnp.array([[-jnp.inf, 0.0, 1.0, -jnp.inf], [-jnp.inf] * 4])
    targets = jnp.array([1, 2])
    for rows, is_nan in ((slice(0, 1), False), (slice(1, 2), True)):
        batch = dict(targets=targets[rows])
        run = on_ranks(lambda x, batch=batch: nn.cross_entropy(x, batch)[0], 4, TIME, P())
        want = losses.cross_entropy(logits[rows], batch)[0]
        np.testing.assert_allclose(run(logits[rows]), want, rtol=1e-6)
        assert jnp.isnan(want) == is_nan


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("batch", "says"),
    [
        (dict(labels=np.zeros((2, 5), np.int32)), "needs batch\\['targets'\\]"),
        (loss_batch(targets=np.zeros((2, 5), np.float32)), "of type float32"),
        (loss_batch(targets=np.zeros((2, 4), np.int32)), r"\(2, 4\), expected \(2, 5\)"),
        (loss_batch(weights=np.zeros(2, np.float32)), r"\(2,\), expected \(2, 5\)"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(batch, says, ranks):
    run = on_ranks(lambda x: nn.cross_entropy(x, batch), ranks, LAST, P())
    with pytest.raises(BatchError, match=says):
        run(jnp.zeros((2, 5, 8)))


def test_the_loss_says_that_it_takes_cut_outputs():
    assert getattr(nn.cross_entropy, "takes_cut", False) is True
    assert not hasattr(losses.cross_entropy, "takes_cut")


# Whole models

GPT = GPTConfig(vocab_size=16, width=16, num_layers=1, num_heads=4, sequence_length=8)
LLAMA = LlamaConfig(
    vocab_size=16, width=32, num_layers=1, num_heads=8, num_kv_heads=4, hidden=24, rotary_theta=50
)
MODELS: dict[str, Any] = dict(gpt=(gpt, GPT), llama=(llama, LLAMA))
CUT = dict(sequence_parallel=True)
VARIANTS: dict[str, tuple[dict[str, Any], bool]] = dict(
    plain=({}, False),
    cut=(CUT, False),
    tied=(dict(tied=True), False),
    tied_cut=(dict(tied=True) | CUT, False),
    packed=({}, True),
    packed_tied_cut=(dict(tied=True) | CUT, True),
    dropout=(dict(dropout=0.3), False),
    packed_dropout_cut=(dict(dropout=0.3) | CUT, True),
)


def model_specs(model: jp.PipelineModule, written: list[Any], batch: Any) -> Any:
    """How each parameter of a model is cut, from the boxes of its modules."""
    outline = model.outline(batch)
    specs = {}
    for layer, spec in zip(model.layers, written, strict=True):
        if not layer.is_tied:
            module = spec.typename(*spec.args, **spec.kwargs)
            x, side = zeros((outline.inputs[layer.index], layer.side_inputs(outline.batch)))
            specs[layer.name] = specs_of(module, x, **side)
    return specs


QUICK = {("gpt", "tied", 2), ("gpt", "packed_dropout_cut", 2), ("llama", "packed_tied_cut", 2)}


@pytest.mark.parametrize(
    ("name", "variant", "ranks"),
    [
        case if case in QUICK else pytest.param(*case, marks=pytest.mark.slow)
        for case in itertools.product(MODELS, VARIANTS, (2, 4))
    ],
)
def test_a_model_has_the_same_loss_and_gradients_on_several_ranks(name, variant, ranks):
    (make, config), (changes, packed) = MODELS[name], VARIANTS[variant]
    written = make(dataclasses.replace(config, **changes), packed)
    model = jp.PipelineModule(written, nn.cross_entropy)
    ids = np.random.default_rng(0).integers(0, 16, (2, 9)).astype(np.int32)
    weights = np.random.default_rng(1).random((2, 8)).astype(np.float32)
    batch = dict(inputs=ids[:, :-1], targets=ids[:, 1:], weights=weights)
    batch |= dict(segment_ids=SEGMENTS) if packed else {}
    # With 0.1, plain float32 on one device is up to 1.2e-6 from float64.
    init = jax.jit(functools.partial(model.init, batch=batch))
    params = perturbed(init(KEY), 0.02)
    specs = model_specs(model, written, batch)
    cut = [spec for spec in jax.tree.leaves(specs) if "tensor" in tuple(spec)]
    assert 0 < len(cut) < len(jax.tree.leaves(params))
    run = jax.value_and_grad(lambda p: model.loss(p, batch, key=KEY, train=True))
    assert compare(run, (params,), (specs,), (P(), specs), ranks) < 1e-6


# What cannot be cut


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (nn.ColumnDense(10), "features = 10.*8 or 12"),
        (nn.Attention(2), "num_heads = 2.*use 4"),
        (nn.Attention(8, num_kv_heads=2), "num_kv_heads = 2.*use 4"),
        (nn.GeluMLP(6), "features = 6.*4 or 8"),
        (nn.SwiGLU(6), "features = 6.*4 or 8"),
    ],
)
def test_sizes_that_the_ranks_do_not_divide_are_refused(module: Any, says: str):
    x = jnp.zeros((2, 8, 32))
    init = on_ranks(lambda: module.init(KEY, x), 4, (), P())
    with pytest.raises(ConfigError, match=says):
        init()


def test_a_vocabulary_and_a_time_that_the_ranks_do_not_divide_are_refused():
    tokens = jnp.zeros((2, 6), jnp.int32)
    with pytest.raises(ConfigError, match=r"vocab_size = 17.*16 or 20"):
        on_ranks(lambda: nn.Embedding(17, 8).init(KEY, tokens), 4, (), P())()
    with pytest.raises(BatchError, match=r"time = 6.*4 or 8.*sequence_parallel=False"):
        on_ranks(lambda: nn.Embedding(16, 8, True).init(KEY, tokens), 4, (), P())()


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ConfigError, match="width = 32, num_heads = 6"):
        nn.Attention(6).init(KEY, jnp.zeros((2, 8, 32)))
    with pytest.raises(ConfigError, match="num_heads = 8 and num_kv_heads = 3"):
        nn.Attention(8, num_kv_heads=3).init(KEY, jnp.zeros((2, 8, 32)))
    with pytest.raises(ConfigError, match=r"heads of 3 features.*2 or 4"):
        nn.Attention(4, rotary_theta=100.0).init(KEY, jnp.zeros((2, 8, 12)))


def test_parameters_are_made_whole_inside_a_region():
    module, x = nn.Attention(8), jnp.zeros((2, 8, 32))

    def init(key: Any) -> Any:
        with tensor.unbound():
            return linen.unbox(module.init(key, x))

    want = jax.jit(lambda key: linen.unbox(module.init(key, x)))(KEY)
    with jax.set_mesh(jp.make_mesh(tensor=2)):
        got = on_ranks(init, 2, P(), P())(KEY)
    jax.tree.map(np.testing.assert_array_equal, got, want)


# What the ranks say to each other

ROWS, LENGTH = 3, 8


@functools.cache
def meetings(sequence_parallel: bool, ranks: int = 2) -> Counter[tuple[str, int]]:
    """How often each collective occurs with how many numbers, in F and B of a block."""
    config = dataclasses.replace(GPT, sequence_parallel=sequence_parallel)
    module, x = Block(config), jnp.zeros((ROWS, LENGTH, config.width))
    specs = specs_of(module, x)
    params = linen.unbox(module.init(KEY, x))["params"]
    cut = TIME if sequence_parallel else WHOLE

    def both(params: Any, x: Any, dy: Any) -> Any:
        y, back = jax.vjp(lambda p, x: module.apply({"params": p}, x), params, x)
        return y, back(dy)

    run = on_ranks(both, ranks, (specs, cut, cut), (cut, (specs, cut)))
    text = run.lower(params, x, x).compile().as_text()
    found: Counter[tuple[str, int]] = Counter()
    collective = r"= (\(.*?\)|\S+) (all-[a-z]+|reduce-scatter|collective-[a-z]+)(?:-start)?\("
    for shapes, op in re.findall(collective, text):
        for dims in re.findall(r"\[([\d,]*)\]", shapes):
            found[op, math.prod(int(d) for d in dims.split(",") if d)] += 1
    return found


ACTIVATIONS = ROWS * LENGTH * GPT.width


def test_a_block_meets_four_times_for_whole_activations():
    assert meetings(False) == {("all-reduce", ACTIVATIONS): 4}


def test_a_sequence_parallel_block_gathers_and_scatters():
    found = meetings(True)
    over_activations = {key: count for key, count in found.items() if key[1] >= ACTIVATIONS // 2}
    gathers = over_activations.pop(("all-gather", ACTIVATIONS))
    assert over_activations == {("reduce-scatter", ACTIVATIONS // 2): 4}
    assert 4 <= gathers <= 6
    # What is left are gradients of parameters that all ranks have whole.
    assert {op for op, size in found if size < ACTIVATIONS // 2} == {"all-reduce"}
