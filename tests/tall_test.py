"""Decompositions of float32 on a CPU, whose Gram matrices are in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import in_turn

from jaxmerge import linalg

EPS = float(np.finfo(np.float32).eps)
M, K = 2048, 12  # two blocks of rows
CONDITIONS = [1.0, 1e2, 1e5, 1e9]


def tall(condition, *, m=M, k=K, seed=0):
    """Singular values from 1 down to 1 / condition, rounded to float32."""
    rng = np.random.default_rng(seed)
    u, _ = np.linalg.qr(rng.normal(size=(m, k)))
    v, _ = np.linalg.qr(rng.normal(size=(k, k)))
    return np.float32(u * np.logspace(0, -np.log10(condition), k) @ v.T)


def orthonormal_or_zero(u, count):
    """The first ``count`` columns are orthonormal to rounding, the others zero."""
    u = np.asarray(u, np.float64)
    assert np.abs(u[:, :count].T @ u[:, :count] - np.eye(count)).max() < 20 * EPS
    assert not u[:, count:].any()


def rebuild(u, s, vt):
    u, s, vt = (np.asarray(x, np.float64) for x in (u, s, vt))
    return (u * s) @ vt


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("m", [M, 40])
def test_svd_is_as_exact_as_its_dtype(condition, m):
    """Also where a Gram matrix in float32 would have lost half of the directions."""
    x = tall(condition, m=m)
    exact = np.linalg.svd(x.astype(np.float64), compute_uv=False)
    kept = int((exact > linalg.rank_tolerance(np.float32) * exact[0]).sum())
    for turned in (False, True):
        u, s, vt = linalg.svd(x.T if turned else x)
        assert u.dtype == s.dtype == vt.dtype == np.float32
        np.testing.assert_allclose(s[:kept], exact[:kept], rtol=1e-4, atol=EPS)
        orthonormal_or_zero(u, kept)
        orthonormal_or_zero(vt.T, kept)
        rebuilt = rebuild(u, s, vt)
        lost = exact[kept:].max(initial=0)
        assert np.linalg.norm(rebuilt - (x.T if turned else x), 2) < 20 * EPS + lost


@pytest.mark.parametrize("condition", CONDITIONS)
def test_bases_hold_the_matrix(condition):
    x = tall(condition)
    u, c = linalg.column_basis(x)
    rows, vt = linalg.row_basis(x.T)
    for basis, inside in ((u, c), (vt.T, rows.T)):
        assert basis.dtype == inside.dtype == np.float32
        basis, inside = (np.asarray(y, np.float64) for y in (basis, inside))
        orthonormal_or_zero(basis, np.count_nonzero(basis.any(axis=0)))
        assert np.linalg.norm(basis @ inside - x, 2) < 40 * EPS
        assert np.linalg.norm(basis.T @ x - inside, 2) < 20 * EPS


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(40, 6), (6, 40), (6, 6)])
def test_what_is_zero_is_zero_in_a_basis(dtype, shape):
    """A zero adapter beside others has no direction of its own."""
    x = np.random.default_rng(1).normal(size=shape).astype(dtype)
    _, c = linalg.column_basis(np.where(np.arange(shape[1]) == 2, 0, x))
    rows, _ = linalg.row_basis(np.where(np.arange(shape[0])[:, None] == 2, 0, x))
    assert not np.asarray(c)[:, 2].any()
    assert not np.asarray(rows)[2].any()


def test_doubled_columns_are_one_direction():
    x = tall(10.0, k=6)
    twice = np.concatenate([x, -x], axis=1)
    for u, count in (
        (linalg.svd(twice)[0], 6),
        (linalg.column_basis(twice)[0], 6),
        (linalg.svd_of_product(twice, jnp.eye(12, 30, dtype=np.float32))[0], 6),
    ):
        orthonormal_or_zero(u, count)


@pytest.mark.parametrize("condition", [1.0, 1e2, 1e5])
def test_polar_is_orthonormal(condition):
    x = tall(condition)
    for factor in (linalg.polar(x), linalg.polar(x.T).T):
        orthonormal_or_zero(factor, K)
        u, _, vt = np.linalg.svd(x.astype(np.float64), full_matrices=False)
        assert np.abs(np.asarray(factor) - u @ vt).max() < 20 * EPS * condition


@pytest.mark.parametrize(("spread", "rank"), in_turn([1.0, 1e6, 1e10], [None, 3]))
def test_sizes_of_factors_belong_to_their_product(spread, rank):
    """Columns of b may be small where the rows of a are large."""
    b, a = tall(10.0), tall(10.0, m=1024, seed=1).T
    sizes = np.float32(np.logspace(0, np.log10(spread), K))
    u, s, vt = linalg.svd_of_product(b / sizes, a * sizes[:, None], rank)
    exact = np.linalg.svd(b.astype(np.float64) @ a, full_matrices=False)
    count = rank or K
    np.testing.assert_allclose(s, exact[1][:count], rtol=1e-4)
    orthonormal_or_zero(u, count)
    best = exact[0][:, :count] * exact[1][:count] @ exact[2][:count]
    found = rebuild(u, s, vt)
    assert np.linalg.norm(found - best) < 1e-5 * np.linalg.norm(best)


@pytest.mark.parametrize("condition", [1e2, 1e3, 1e6])
def test_products_are_exact_on_both_sides_of_a_choice(condition):
    """By Cholesky as far as the condition allows it, by eigenvectors beyond."""
    b, a = tall(condition), tall(condition, m=1024, seed=1).T
    u, s, vt = linalg.svd_of_product(b, a)
    exact = np.linalg.svd(b.astype(np.float64) @ a, full_matrices=False)[1][:K]
    np.testing.assert_allclose(s, exact, atol=20 * EPS * exact[0])
    count = np.count_nonzero(s)
    orthonormal_or_zero(u, count)
    orthonormal_or_zero(vt.T, count)
    assert np.linalg.norm(rebuild(u, s, vt) - b.astype(np.float64) @ a, 2) < 40 * EPS


def test_directions_of_a_product_have_the_derivatives_of_all():
    """Truncation does not change the derivative of what is kept."""
    b, a = (
        jnp.asarray(np.random.default_rng(seed).normal(size=shape))
        for seed, shape in ((0, (9, 4)), (1, (4, 7)))
    )

    def kept(b, rank):
        u, s, vt = linalg.svd_of_product(b, a, rank)
        return (u[:, :2] * s[None, :2]) @ vt[:2]

    change = np.random.default_rng(2).normal(size=b.shape)
    both = [
        jax.jvp(lambda b, r=rank: kept(b, r), (b,), (change,))[1] for rank in (None, 2)
    ]
    np.testing.assert_allclose(*both, rtol=1e-12)


@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (5, 5)])
def test_derivatives_of_bases(shape):
    """Of what does not depend on the basis: x itself, and an entry of its projector."""
    rng = np.random.default_rng(3)
    x, dx = rng.normal(size=(2, *shape))

    def of_columns(x):
        u, c = linalg.column_basis(x)
        return u @ c, jnp.sum(c**2, axis=0)

    def of_rows(x):
        c, vt = linalg.row_basis(x)
        return c @ vt, jnp.sum(c**2, axis=1)

    for function, axis in ((of_columns, 0), (of_rows, 1)):
        _, (change, sizes) = jax.jvp(function, (x,), (dx,))
        np.testing.assert_allclose(change, dx, atol=1e-10)
        np.testing.assert_allclose(sizes, 2 * np.sum(x * dx, axis=axis), atol=1e-10)


def test_doubles_inside_need_no_doubles_outside():
    """JAX is set to 32 bits, as for most: compiled, in batches, as a derivative."""
    x = np.stack([tall(3.0, m=40, seed=s) for s in range(2)])
    with jax.enable_x64(False):
        found = jax.jit(jax.vmap(linalg.svd))(x)
        assert all(y.dtype == np.float32 for y in found)
        slope = jax.grad(lambda x: jnp.sum(linalg.svd(x)[1]))(x[0])
        assert slope.dtype == np.float32
        text = str(jax.make_jaxpr(lambda x: linalg.svd(x)[1] + 1)(x[0]).out_avals)
        assert "float64" not in text
    for one, u, s, vt in zip(x, *found, strict=True):
        np.testing.assert_allclose(rebuild(u, s, vt), one, atol=10 * EPS)
    u, _, vt = np.linalg.svd(x[0].astype(np.float64), full_matrices=False)
    np.testing.assert_allclose(slope, u @ vt, atol=1e-5)
