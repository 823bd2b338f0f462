"""What every merger does under jit, vmap, grad and map_modules."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from methods import METHODS, distance, random_stack, tolerance

import jaxmerge as jm

NAMES = sorted(METHODS)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_jit_equals_eager_and_traces_once(name, dtype):
    merge = METHODS[name]
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def traced(stack, weights):
        return merge(stack, weights=weights)

    for seed in range(2):
        stack = random_stack((3, 3, 3), 14, 11, dtype=dtype, seed=seed)
        weights = jnp.array([1.0, 0.5, 2.0], dtype)
        compiled = traced(stack, weights)
        assert distance(compiled, merge(stack, weights=weights)) < tolerance(dtype)


@pytest.mark.parametrize("name", NAMES)
def test_vmap_over_modules_equals_a_loop(name):
    stacks = [random_stack((2, 2, 2), 9, 8, seed=seed) for seed in range(3)]
    together = jax.vmap(METHODS[name].__call__)(
        jax.tree.map(lambda *x: jnp.stack(x), *stacks)
    )
    for merged, stack in zip(together, stacks, strict=True):
        assert distance(merged, METHODS[name](stack)) < tolerance(np.float64)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_finite(name):
    stack = random_stack((3, 3, 3), 9, 8)
    first = jnp.zeros(3, int)
    kinds = {
        "generic": stack,
        "deficient": stack.replace(a=stack.a.at[:, 2].set(stack.a[:, 1])),
        "duplicate": stack.replace(a=stack.a[first], b=stack.b[first]),
        "zero": stack.replace(b=stack.b.at[1].set(0)),
    }
    target = np.random.default_rng(1).normal(size=(9, 8))

    @jax.jit
    @jax.grad
    def gradient(stack):
        return jnp.sum(METHODS[name](stack) * target)

    for kind, each in kinds.items():
        finite = jax.tree.map(lambda x: bool(jnp.all(jnp.isfinite(x))), gradient(each))
        assert all(jax.tree.leaves(finite)), kind


DIFFERENTIABLE = [
    "concat", "average", "full/total", "core/total", "knots/total", "full/tsv",
    "core/tsv", "tsv_m", "core/iso_c", "full/iso_c", "core/iso_cts", "full/cart",
    "concat|svc", "pico(concat)", "pico(tsv_m)", "balanced(pico(concat))",
    "concat|truncate", "tsv_m|isotropize", "core/ties", "knots/ties", "ctm(total)",
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "ranks", "m", "n"),
    [(name, (3, 2, 3), 9, 10) for name in DIFFERENTIABLE]
    + [(name, (2, 2, 2, 2), 3, 10) for name in ("tsv_m", "core/tsv", "full/tsv")],
)
def test_gradient_equals_finite_differences(name, ranks, m, n):
    stack = random_stack(ranks, m, n)
    rng = np.random.default_rng(1)
    target = rng.normal(size=(m, n))
    direction = random_stack(ranks, m, n, seed=5)

    @jax.jit
    def loss(step):
        moved = jax.tree.map(lambda x, d: x + step * d, stack, direction)
        return jnp.sum(METHODS[name](moved) * target)

    step = 1e-5
    expected = (loss(step) - loss(-step)) / (2 * step)
    assert jax.grad(loss)(0.0) == pytest.approx(float(expected), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_unknown_inputs_are_ignored_and_inputs_not_changed(name):
    stack = random_stack((3, 3), 9, 8)
    before = jax.tree.map(np.array, stack)
    plain = METHODS[name](stack)
    assert np.array_equal(METHODS[name](stack, statistics=None), plain)
    assert np.array_equal(METHODS[name](stack), plain)
    chex.assert_trees_all_equal(stack, before)


def test_an_input_of_a_call_reaches_whoever_declares_it():
    """So hyper-parameters are bound, each to its own function."""
    stack = random_stack((3, 3), 9, 8)
    cart = partial(jm.cart, rank_fraction=0.3)
    bound = jm.then(jm.full_space(partial(cart, by=0.1)), partial(jm.scale, by=0.5))
    expected = 0.5 * jm.full_space(partial(cart, by=0.1))(stack)
    assert np.array_equal(bound(stack), expected)
    shared = jm.then(jm.full_space(partial(cart, by=0.1)), jm.scale)
    expected = 0.5 * jm.full_space(partial(cart, by=0.5))(stack)
    assert np.array_equal(shared(stack, by=0.5), expected)


@pytest.mark.parametrize("name", [n for n in NAMES if METHODS[n].random])
def test_random_mergers_need_a_key_and_depend_on_it_alone(name):
    stack = random_stack((4, 4, 4), 9, 8)
    with pytest.raises(TypeError, match="key"):
        METHODS[name].merger(stack)
    same = [METHODS[name](stack, key=jax.random.key(3)) for _ in range(2)]
    assert np.array_equal(*same)
    other = [METHODS[name](stack, key=jax.random.key(k)) for k in range(4, 8)]
    assert any(distance(x, same[0]) > 1e-3 for x in other)


def test_a_sweep_is_one_compiled_call_that_decomposes_once():
    stack = random_stack((3, 3, 3), 14, 11, dtype=np.float32)
    scales, densities = (
        jnp.linspace(0.1, 1, 32, dtype=jnp.float32),
        jnp.linspace(0.1, 0.9, 32, dtype=jnp.float32),
    )

    @chex.assert_max_traces(n=1)
    def merge(stack, by, density):
        rule = partial(jm.ties, density=density)
        return jm.dense(jm.scale(jm.core_space(rule)(stack), by=by))

    sweep = jax.jit(jax.vmap(merge, in_axes=(None, 0, 0)))
    merged = sweep(stack, scales, densities)
    for index in (0, 13, 31):
        by, density = float(scales[index]), float(densities[index])
        one = jm.scale(jm.core_space(partial(jm.ties, density=density))(stack), by=by)
        assert distance(merged[index], jm.dense(one)) < 1e-5
    for equation in _equations(jax.make_jaxpr(sweep)(stack, scales, densities).jaxpr):
        if equation.primitive.name in ("svd", "qr", "householder_product", "geqrf"):
            assert 32 not in equation.invars[0].aval.shape


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (list, tuple)) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from _equations(inner)


LOW_RANK = [
    name for name in NAMES if not name.startswith("full") and "cart" not in name
]


@pytest.mark.parametrize("name", LOW_RANK)
def test_no_low_rank_path_holds_a_dense_matrix(name):
    """Neither forward nor backward: no array of the program has m x n entries."""
    m, n, ranks = 160, 144, (2, 2, 2)
    stack = random_stack(ranks, m, n)
    inputs = METHODS[name].inputs(stack)

    def size(stack):
        return jm.norm(METHODS[name].merger(stack, **inputs))

    program = jax.make_jaxpr(jax.value_and_grad(size))(stack)
    for equation in _equations(program.jaxpr):
        for variable in equation.outvars:
            shape = getattr(variable.aval, "shape", ())
            assert not {m, n} <= set(shape), (equation.primitive.name, shape)
            assert np.prod(shape, dtype=int) < m * n, (equation.primitive.name, shape)
