"""OSRM: what its rows avoid, and what the options choose."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from methods import distance, random_stack

import jaxmerge as jm

N, RANK = 12, 3


def inputs(seed, count=200, n=N, scale=0.6):
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(n, n)))[0]
    return rng.normal(size=(count, n)) * scale ** np.arange(n) @ turn


def stacked(*tasks):
    return jax.tree.map(
        lambda *x: jnp.stack(x), *(jm.moments_of(jnp.asarray(x)) for x in tasks)
    )


def projector(a):
    return np.asarray(a).T @ np.asarray(a)


def assert_orthonormal(a, tolerance=1e-10):
    assert np.abs(np.asarray(a @ a.T) - np.eye(a.shape[0])).max() < tolerance


def energy(a, x):
    return np.linalg.norm(x @ np.asarray(a).T) ** 2 / len(x)


def test_rows_have_the_least_energy_of_the_other_tasks():
    xs = inputs(0, count=50), inputs(1, count=400)
    a = jm.osrm_init(stacked(*xs), rank=RANK)
    assert_orthonormal(a)
    least = np.linalg.eigvalsh(sum(x.T @ x / len(x) for x in xs))[:RANK]
    energies = [sum(energy(row[None], x) for x in xs) for row in a]
    assert energies == pytest.approx(least, rel=1e-8)
    repeated = jm.osrm_init(stacked(np.tile(xs[0], (9, 1)), xs[1]), rank=RANK)
    assert distance(projector(repeated), projector(a)) < 1e-8  # not tokens, tasks


def test_too_few_tokens_leave_a_null_space_and_shrinkage_chooses_in_it():
    x = inputs(2, count=5, scale=1.0) * np.linspace(1, 3, N)
    a = jm.osrm_init(stacked(x), rank=RANK)
    assert energy(a, x) < 1e-20
    shrunk = jm.osrm_init(stacked(x), rank=RANK, shrinkage=0.2)
    assert_orthonormal(shrunk)
    covariance = x.T @ x / len(x)
    target = 0.8 * covariance + 0.2 * np.diag(np.diag(covariance))
    values, vectors = np.linalg.eigh(target)
    assert values[RANK] - values[RANK - 1] > 1e-4
    assert distance(projector(shrunk), projector(vectors[:, :RANK].T)) < 1e-8
    diagonal = jm.osrm_init(stacked(x), rank=RANK, shrinkage=1.0)
    quiet = np.argsort(np.diag(covariance))[:RANK]
    assert distance(np.diag(projector(diagonal))[quiet], np.ones(RANK)) < 1e-10


def test_own_energy_is_the_largest_within_the_quiet_subspace():
    others, own = inputs(3), inputs(4)
    stats, target = stacked(others), jm.moments_of(jnp.asarray(own))
    a = jm.osrm_init(stats, rank=RANK, own=target, subspace=7)
    assert_orthonormal(a)
    quiet = np.linalg.eigh(others.T @ others)[1][:, :7]
    inside = np.linalg.eigvalsh(quiet.T @ (own.T @ own / len(own)) @ quiet)
    assert energy(a, own) == pytest.approx(inside[-RANK:].sum(), rel=1e-8)
    assert distance(projector(a) @ quiet @ quiet.T, projector(a)) < 1e-10
    plain = jm.osrm_init(stats, rank=RANK)
    assert energy(a, own) > energy(plain, own)
    assert energy(plain, others) < energy(a, others)
    same = jm.osrm_init(stats, rank=RANK, own=target, subspace=RANK)
    assert distance(projector(same), projector(plain)) < 1e-8


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_null_space_of_the_means(dtype):
    stats = stacked(*(inputs(seed) + seed + 1 for seed in range(4)))
    means = jnp.asarray(stats.mean, dtype)
    make = partial(jm.osrm_null_space, means, rank=RANK)
    a = make(key=jax.random.key(0))
    tolerance = 20 * np.finfo(dtype).eps
    assert a.dtype == dtype
    assert_orthonormal(a, tolerance)
    assert np.abs(a @ means.T).max() < tolerance * np.abs(means).max() * N
    assert np.array_equal(make(key=jax.random.key(0)), a)
    assert distance(projector(make(key=jax.random.key(1))), projector(a)) > 0.1
    same = jm.osrm_null_space(
        means[jnp.array([0, 0, 1, 2, 3])], rank=RANK, key=jax.random.key(0)
    )
    assert distance(same, a) < 1e3 * tolerance  # repeated vectors avoid no more


def test_compiled_equals_eager_and_runs_over_modules():
    stats = {name: stacked(inputs(i), inputs(i + 5)) for i, name in enumerate("qv")}
    own = {
        name: jm.moments_of(jnp.asarray(inputs(i + 9))) for i, name in enumerate("qv")
    }

    def init(stats, own):
        return jm.osrm_init(stats, rank=RANK, own=own, subspace=6)

    rows = jm.map_modules(init, stats, own)
    for name in "qv":
        eager = init(stats[name], own[name])
        assert distance(projector(rows[name]), projector(eager)) < 1e-9
    draws = jm.map_modules(
        lambda stats, *, key: jm.osrm_null_space(stats.mean, rank=RANK, key=key),
        stats,
        key=jax.random.key(3),
    )
    for name in "qv":
        assert np.abs(draws[name] @ stats[name].mean.T).max() < 1e-12


@pytest.mark.parametrize("low_rank", [False, True])
def test_projection_after_training(low_rank):
    stack = random_stack((4,), 9, N)
    update = jm.LowRank(b=stack.b[0], a=stack.a[0])
    exact = np.asarray(jm.dense(update))
    a = jm.osrm_init(stacked(inputs(0)), rank=RANK)
    given = update if low_rank else jm.dense(update)
    projected = jm.osrm_project(given, a)
    assert distance(jm.dense(projected), exact @ projector(a)) < 1e-12
    in_layer = jm.osrm_project(given, a, scaling=2.0)
    assert np.array_equal(in_layer.a, a)
    assert distance(2.0 * in_layer.b @ in_layer.a, exact @ projector(a)) < 1e-12
    skewed = jnp.asarray(np.diag([1.0, 5.0, 0.1]) @ np.asarray(a))
    again = jm.osrm_project(given, skewed)
    assert distance(jm.dense(again), exact @ projector(a)) < 1e-10
    deficient = jm.osrm_project(given, jnp.concatenate([a, a[:1]]))
    assert distance(jm.dense(deficient), exact @ projector(a)) < 1e-10


def test_share_of_energy_that_survives_a_projection():
    """About r / n of a generic update, as is said."""
    n, rank = 128, 8
    update = jnp.asarray(np.random.default_rng(0).normal(size=(40, n)))
    a = jm.osrm_null_space(jnp.ones((1, n)), rank=rank, key=jax.random.key(0))
    kept = jm.norm(jm.osrm_project(update, a)) ** 2 / jm.norm(update) ** 2
    assert kept == pytest.approx(rank / n, rel=0.2)


def test_plain_start():
    a = jm.kaiming_init(jax.random.key(0), rank=50, n=100)
    assert a.shape == (50, 100)
    assert a.dtype == jnp.float32
    assert 0.099 < np.abs(a).max() <= 0.1
    assert np.std(a) == pytest.approx(0.1 / 3**0.5, rel=0.03)


def test_refusals():
    stats = stacked(inputs(0))
    nothing = jax.tree.map(lambda x: x[:0], stats)
    with pytest.raises(ValueError, match=r"no other task.*kaiming_init"):
        jm.osrm_init(nothing, rank=2)
    for options in ({"rank": 0}, {"rank": N + 1}, {"rank": 2, "own": stats},
                    {"rank": 4, "own": stats, "subspace": 3}):  # fmt: skip
        with pytest.raises(ValueError, match="rank <= subspace <= n"):
            jm.osrm_init(stats, **options)
    for subspace in (1, 7):
        with pytest.raises(ValueError, match=f"subspace {subspace} chooses nothing"):
            jm.osrm_init(stats, rank=RANK, subspace=subspace)
    sketch = jm.sketch_of(jnp.asarray(inputs(0)), size=4)
    with pytest.raises(ValueError, match="rows of the sketch to osrm_null_space"):
        jm.osrm_init(jax.tree.map(lambda x: x[None], sketch), rank=2)
    with pytest.raises(ValueError, match="10 rows orthogonal to 4 vectors"):
        jm.osrm_null_space(sketch.rows, rank=10, key=jax.random.key(0))
