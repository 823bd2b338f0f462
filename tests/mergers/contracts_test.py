"""What every merger does under jit, vmap and grad, and with inputs of a call."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from methods import METHODS, check_jit, distance, random_stack, run, tolerance
from tiers import in_turn

import jaxmerge as jm

NAMES = sorted(METHODS)
SOME = in_turn(NAMES, quick=12)  # laws_test asks all of them, many modules at a time


@pytest.mark.thorough
@pytest.mark.parametrize("name", NAMES)
def test_jit_equals_eager_and_traces_once(name):
    """In single precision; in double it is among the laws."""
    check_jit(METHODS[name], (3, 3, 3), 14, 11, dtype=np.float32)


def stack_for(name, seed=0):
    ranks = (3, 3, 3) if METHODS[name].equal_ranks else (3, 2, 3)
    return random_stack(ranks, 9, 10, seed=seed)


@pytest.mark.thorough
@pytest.mark.parametrize("name", SOME)
def test_vmap_over_modules_equals_a_loop(name):
    stacks = [stack_for(name, seed) for seed in range(3)]
    together = jax.jit(jax.vmap(METHODS[name].__call__))(
        jax.tree.map(lambda *x: jnp.stack(x), *stacks)
    )
    for merged, stack in zip(together, stacks, strict=True):
        assert distance(merged, run(name, stack).update) < tolerance(np.float64)


@pytest.mark.parametrize("name", SOME)
def test_gradients_are_finite(name):
    stack = stack_for(name)
    kinds = {
        "generic": stack,
        "deficient": stack.replace(a=stack.a.at[:, 1].set(stack.a[:, 0])),
        "duplicate": stack.replace(
            a=stack.a.at[2].set(stack.a[0]), b=stack.b.at[2].set(stack.b[0])
        ),
        "zero": stack.replace(b=stack.b.at[1].set(0)),
    }
    for kind, each in kinds.items():
        gradient = run(name, each).gradient
        finite = jax.tree.map(lambda x: bool(jnp.all(jnp.isfinite(x))), gradient)
        assert all(jax.tree.leaves(finite)), kind


@pytest.mark.parametrize(
    ("name", "crowded"),
    [
        *in_turn(NAMES, [False], quick=12),
        *((name, True) for name in ("tsv_m", "core/tsv", "full/tsv")),
    ],
)
def test_gradient_equals_finite_differences(name, crowded):
    """With the inputs of a call held fast, statistics among them."""
    stack = random_stack((2, 2, 2, 2), 3, 10) if crowded else stack_for(name)
    _, m, _ = stack.b.shape
    direction = random_stack(stack.ranks, m, 10, seed=5)
    inputs, step = METHODS[name].inputs(stack), 1e-5

    def at(step):
        moved = jax.tree.map(lambda x, d: x + step * d, stack, direction)
        return run(name, moved, inputs)

    expected = float(at(step).loss - at(-step).loss) / (2 * step)
    slopes = jax.tree.map(lambda x, d: jnp.sum(x * d), at(0.0).gradient, direction)
    slope = float(slopes.a + slopes.b)
    assert slope == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", SOME)
def test_unknown_inputs_are_ignored_and_inputs_not_changed(name):
    stack = stack_for(name)
    before = jax.tree.map(np.array, stack)
    plain, with_unknown = (
        jax.make_jaxpr(partial(METHODS[name].__call__, **extra))(stack)
        for extra in ({}, {"statistics": None})
    )
    assert str(with_unknown) == str(plain)
    assert np.array_equal(*(run(name, stack).update for _ in range(2)))
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


@pytest.mark.parametrize("name", NAMES)
def test_only_full_space_holds_a_dense_matrix(name):
    """Elsewhere no array has m x n entries, neither forward nor backward."""
    m, n, ranks = 160, 144, (2, 2, 2)
    stack = random_stack(ranks, m, n)
    inputs = METHODS[name].inputs(stack)

    def size(stack):
        return jm.norm(METHODS[name].merger(stack, **inputs))

    program = jax.make_jaxpr(jax.value_and_grad(size))(stack)
    shapes = {
        getattr(variable.aval, "shape", ())
        for equation in _equations(program.jaxpr)
        for variable in equation.outvars
    }
    dense = {
        shape
        for shape in shapes
        if {m, n} <= set(shape) or np.prod(shape, dtype=int) >= m * n
    }
    assert bool(dense) == METHODS[name].dense, dense
