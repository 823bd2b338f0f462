"""Reversible merging: what comes back, what is lost, and what is stored."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from methods import distance, random_stack, task_updates, tolerance

import jaxmerge as jm

M, N = 12, 10


@partial(jax.jit, static_argnames=("components", "rank"))
def everyone(stack, components, rank=None):
    """All adapters restored, [T, m, n]."""
    merge = jm.compress_adapters(stack, components=components, rank=rank)
    tasks = jnp.arange(len(stack.ranks))
    return jax.vmap(lambda t: jm.dense(jm.restore_adapter(merge, t)))(tasks)


curve_of = jax.jit(jm.compression_curve, static_argnames="rank")


def kinds(dtype):
    stack = random_stack((3, 2, 3), M, N, dtype=dtype)
    copy = stack.replace(
        a=stack.a.at[2].set(stack.a[0]), b=stack.b.at[2].set(stack.b[0])
    )
    return {
        "generic": stack,
        "duplicate": copy,
        "zero": stack.replace(b=stack.b.at[1].set(0)),
        "deficient": stack.replace(a=stack.a.at[:, 1].set(stack.a[:, 0])),
        "sizes": stack.replace(
            b=stack.b * jnp.array([1.0, 1e-9, 1e9], dtype)[:, None, None]
        ),
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_with_a_component_for_each_adapter_everything_comes_back(dtype):
    for kind, stack in kinds(dtype).items():
        restored, own = everyone(stack, 3), task_updates(stack)
        assert restored.dtype == dtype
        for found, expected in zip(restored, own, strict=True):
            assert distance(found, expected) < tolerance(dtype), kind


@pytest.mark.parametrize("ranks", [(2,), (4, 0, 5, 3)])  # alone; more than there are
def test_any_number_of_adapters_comes_back(ranks):
    stack = random_stack(ranks, M, N)
    own = np.asarray(task_updates(stack))
    assert distance(everyone(stack, len(ranks)), own) < 1e-9


@pytest.mark.parametrize("rank", [None, 4])
def test_the_curve_says_what_is_lost(rank):
    stack = random_stack((3, 2, 3), M, N)
    own, curve = np.asarray(task_updates(stack)), curve_of(stack, rank=rank)
    assert curve.errors.shape == (3, 3)
    for p in (1, 3):
        lost = np.linalg.norm(everyone(stack, p, rank) - own, axis=(1, 2))
        sizes = np.linalg.norm(own, axis=(1, 2))
        assert np.allclose(curve.errors[p - 1], lost / sizes, atol=1e-12)
    assert np.all(np.diff(np.sum(curve.errors**2, axis=1)) < 0)


def test_no_other_components_lose_less():
    """The singular values of the dense updates, side by side as vectors of norm 1."""
    own = np.asarray(task_updates(stack := random_stack((3, 2, 3), M, N)))
    vectors = own.reshape(3, -1) / np.linalg.norm(own, axis=(1, 2))[:, None]
    values = np.linalg.svd(vectors, compute_uv=False)
    errors = np.sum(np.asarray(curve_of(stack).errors) ** 2, axis=1)
    assert np.allclose(errors, [sum(values[p:] ** 2) for p in (1, 2, 3)], atol=1e-12)


def test_what_is_lost_depends_on_the_updates_alone():
    stack = random_stack((3, 2, 3), M, N)
    gauge = np.random.default_rng(2).normal(size=(3, 3, 3))
    gauge[1, 2, :2] = gauge[1, :2, 2] = 0  # the padding stays what it is
    moved = stack.replace(b=stack.b @ gauge, a=jnp.linalg.solve(gauge, stack.a))
    for rank in (None, 4):
        assert distance(everyone(moved, 1, rank), everyone(stack, 1, rank)) < 1e-9
    permuted = stack.replace(a=stack.a[::-1], b=stack.b[::-1])
    assert distance(everyone(permuted, 1)[::-1], everyone(stack, 1)) < 1e-9


def test_the_curve_counts_what_a_file_would_hold():
    """A copy has no directions of its own; a rank narrows the bases."""
    shared = 3 + 2  # directions of the two that differ
    curve = curve_of(kinds(np.float64)["duplicate"])
    bases = shared * (M + N)
    assert list(curve.numbers) == [bases + p * (shared**2 + 3) for p in (1, 2, 2)]
    assert curve.core_numbers == bases + 3 * shared**2
    assert curve.adapter_numbers == 8 * (M + N)
    stack = random_stack((3, 2, 3), M, N)
    compress = partial(jm.compress_adapters, components=2, rank=4)
    shapes = jax.eval_shape(compress, stack)
    sizes = [x.size for x in jax.tree.leaves(shapes)]
    assert curve_of(stack, rank=4).numbers[1] == sum(sizes)
    one = jax.eval_shape(lambda s: jm.restore_adapter(compress(s), 0), stack)
    assert one.b.shape == (M, 4)


def loss(stack):
    updates = everyone(stack, 1)
    return jnp.sum(updates * jnp.linspace(0, 1, updates.size).reshape(updates.shape))


def test_gradients_are_finite_and_those_of_finite_differences():
    gradient = jax.jit(jax.grad(loss))
    for kind, stack in kinds(np.float64).items():
        found = jax.tree.leaves(gradient(stack))
        assert all(bool(jnp.all(jnp.isfinite(x))) for x in found), kind
    stack, direction = (random_stack((3, 2, 3), M, N, seed=seed) for seed in (0, 5))
    ahead, behind = (
        loss(jax.tree.map(lambda x, d, h=h: x + h * d, stack, direction))
        for h in (1e-5, -1e-5)
    )
    slope = jax.tree.map(lambda x, d: jnp.sum(x * d), gradient(stack), direction)
    assert float(slope.a + slope.b) == pytest.approx(
        float(ahead - behind) / 2e-5, rel=1e-5
    )


def test_a_whole_model_is_one_call():
    stacks = {f"m{i}": random_stack((3, 2, 3), M, N, seed=i) for i in range(2)}
    merges = jm.map_modules(partial(jm.compress_adapters, components=3), stacks)
    restore = jax.jit(jm.restore_adapter)
    for name, stack in stacks.items():
        second = jm.dense(restore(merges[name], 1))
        assert distance(second, task_updates(stack)[1]) < 1e-9


def test_what_is_not_finite_stays_visible():
    stack = random_stack((3, 2, 3), M, N)
    broken = stack.replace(b=stack.b.at[1, 2, 1].set(jnp.nan))
    assert not np.all(np.isfinite(everyone(broken, 3)[1]))
    assert not np.all(np.isfinite(curve_of(broken).errors[:, 1]))


def test_no_number_below_one():
    stack = random_stack((1,), 2, 2)
    for wrong in ({"components": 0}, {"components": 1, "rank": 0}):
        with pytest.raises(jm.Refusal, match="must be at least 1, got 0"):
            jm.compress_adapters(stack, **wrong)
