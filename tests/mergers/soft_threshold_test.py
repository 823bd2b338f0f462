"""LoRE: thresholds that solve the problems that they are said to solve."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from methods import distance, random_stack, task_updates, tolerance

import jaxmerge as jm

STACK = random_stack((3, 2, 3), 12, 10)
NAMES = ("threshold", "relative", "squared")
shrink = jax.jit(jm.shrink_updates, static_argnames=NAMES[1:])
KINDS = {
    "relative": {},
    "absolute": {"relative": False},
    "squared": {"squared": True},
}


def tau(kind, s, mu):
    """The threshold of values, for the squared norm by bisection."""
    if kind != "squared":
        return mu * (s[0] if kind == "relative" else 1.0)
    low, high = 0.0, s[0]
    for _ in range(200):
        middle = (low + high) / 2
        enough = middle >= mu * np.sum(np.maximum(s - middle, 0))
        low, high = (low, middle) if enough else (middle, high)
    return high


@pytest.mark.parametrize("kind", KINDS)
def test_singular_values_are_moved_as_stated(kind):
    for mu in (0.05, 0.3, 2.0):
        found = np.asarray(task_updates(shrink(STACK, threshold=mu, **KINDS[kind])))
        for update, own in zip(found, np.asarray(task_updates(STACK)), strict=True):
            u, s, vt = np.linalg.svd(own, full_matrices=False)
            left = np.maximum(s - tau(kind, s, mu), 0)
            assert np.allclose(update, (u * left) @ vt, atol=1e-10), mu
            assert (kind, mu) == ("relative", 2.0) or np.any(left > 0)


def test_no_other_update_has_a_smaller_squared_nuclear_norm_and_distance():
    mu, rng = 0.3, np.random.default_rng(0)
    own = np.asarray(task_updates(STACK))[0]
    found = np.asarray(task_updates(shrink(STACK, threshold=mu, squared=True)))[0]

    def objective(x):
        nuclear = np.sum(np.linalg.svd(x, compute_uv=False))
        return np.sum((x - own) ** 2) / 2 + mu * nuclear**2 / 2

    for size in (1e-3, 0.1):
        for _ in range(20):
            other = found + size * rng.normal(size=(12, 1)) * rng.normal(size=10)
            assert objective(found) < objective(other)
    assert objective(found) < min(objective(0.99 * found), objective(1.01 * found))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_a_threshold_of_zero_changes_nothing(kind, dtype):
    """Not even the factors, so that any merger gives what it gives without."""
    stack = random_stack((3, 2, 3), 12, 10, dtype=dtype)
    same = shrink(stack, threshold=0.0, **KINDS[kind])
    assert distance(same.b, stack.b) < tolerance(dtype)
    assert np.array_equal(same.a, stack.a)


@pytest.mark.parametrize("kind", KINDS)
def test_what_stays_follows_the_factors_and_their_size(kind):
    threshold = partial(shrink, threshold=0.2, **KINDS[kind])
    stack = random_stack((3, 3, 3), 12, 10)
    gauge = jnp.asarray(np.random.default_rng(2).normal(size=(3, 3, 3)))
    moved = threshold(
        stack.replace(b=stack.b @ gauge, a=jnp.linalg.solve(gauge, stack.a))
    )
    assert distance(moved.b, threshold(stack).b @ gauge) < 1e-9
    larger = threshold(stack.replace(b=3 * stack.b)).b
    assert (distance(larger, 3 * threshold(stack).b) < 1e-9) == (kind != "absolute")


def test_it_is_a_step_of_pipelines():
    text = "tsv_m|soft_threshold(0.2, relative=False)"
    merged = jm.parse(text).run({"q": STACK})["q"]
    merge = jm.soft_threshold(jm.tsv_m, threshold=0.2, relative=False)
    assert distance(jm.dense(merged), jm.dense(jax.jit(merge)(STACK))) < 1e-9


def test_a_threshold_below_zero_is_refused():
    with pytest.raises(jm.Refusal, match="at least 0, got -1"):
        jm.soft_threshold(jm.concat, threshold=-1)
    with pytest.raises(jm.PipelineError, match="at least 0, got -1"):
        jm.parse("concat|soft_threshold(-1)")
