"""Decompositions, roots and quotients: exactness, null directions, derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from methods import distance, gaussian, tolerance
from tiers import in_turn

from jaxmerge import linalg

SHAPES = [(7, 4), (4, 7), (5, 5), (1, 6), (6, 1)]


@pytest.mark.parametrize(("shape", "dtype"), in_turn(SHAPES, [np.float32, np.float64]))
def test_svd_rebuilds_and_is_sorted(shape, dtype):
    x = gaussian(*shape, dtype=dtype)
    u, s, vt = linalg.svd(x)
    assert u.dtype == s.dtype == vt.dtype == dtype
    assert distance((u * s[None]) @ vt, x) < tolerance(dtype)
    np.testing.assert_allclose(s, np.linalg.svd(x, compute_uv=False), rtol=1e-5)
    assert np.all(np.diff(s) <= 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_null_directions_are_zero(dtype):
    x = gaussian(9, 2, dtype=dtype) @ gaussian(2, 6, seed=1, dtype=dtype)
    for u, s, vt in [linalg.svd(x), linalg.svd_of_product(x, jnp.eye(6, dtype=dtype))]:
        assert np.count_nonzero(s) == 2
        assert np.all(np.asarray(u)[:, 2:] == 0)
        assert np.all(np.asarray(vt)[2:] == 0)
        assert distance(linalg.polar(x), u @ vt) < tolerance(dtype)


@pytest.mark.parametrize(
    ("shape", "value"), in_turn([(9, 4), (4, 9), (5, 5)], [np.nan, np.inf, -np.inf])
)
def test_decompositions_of_what_is_not_finite_are_nan(shape, value):
    """Of that matrix alone, not of the others of a batch."""
    x = gaussian(3, *shape)
    bad = x.at[1, 2, 3].set(value)
    gram, bad_gram = (
        jnp.swapaxes(y, 1, 2) @ jnp.where(jnp.isfinite(y), y, 1) for y in (x, bad)
    )
    eye = jnp.broadcast_to(jnp.eye(shape[1]), (3, shape[1], shape[1]))
    for function, clean, dirty in (
        (linalg.svd, (x,), (bad,)),
        (linalg.svd_of_product, (x, eye), (bad, eye)),
        (linalg.svd_of_product, (eye.mT, x.mT), (eye.mT, bad.mT)),
        (linalg.polar, (x,), (bad,)),
        (linalg.eigh, (gram,), (bad_gram,)),
    ):
        results = (jax.tree.leaves(function(*each)) for each in (clean, dirty))
        for expected, got in zip(*results, strict=True):
            assert np.all(np.isnan(got[1])), function
            others = jnp.array([0, 2])
            assert np.array_equal(got[others], expected[others])


def test_root_falls_through():
    x = jnp.array([4.0, 0.0, -1.0, np.inf, np.nan])
    np.testing.assert_array_equal(linalg.root(x), [2, 0, 0, np.inf, np.nan])
    slopes = jax.vmap(jax.grad(linalg.root))(x)
    np.testing.assert_array_equal(slopes, [0.25, 0, 0, 0, np.nan])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_division_by_zero_is_zero(dtype):
    """In value and derivatives; what is not a number stays visible."""
    x = jnp.array([3.0, 3.0, 0.0, np.nan, 3.0, 3.0], dtype)
    y = jnp.array([2.0, 0.0, 0.0, 1.0, np.nan, np.inf], dtype)
    quotient = linalg.divide(x, y)
    assert quotient.dtype == linalg.divide(1, y).dtype == dtype
    np.testing.assert_array_equal(quotient, [1.5, 0, 0, np.nan, np.nan, 0])
    of_x, of_y = (jax.vmap(jax.grad(linalg.divide, i))(x, y) for i in (0, 1))
    np.testing.assert_array_equal(of_x[:3], [0.5, 0, 0])
    np.testing.assert_array_equal(of_y[:3], [-0.75, 0, 0])


@pytest.mark.parametrize("shape", [(9, 3, 7), (3, 9, 2), (2, 5, 9), (4, 4, 4)])
def test_svd_of_product_is_the_svd_of_the_product(shape):
    m, k, n = shape
    b, a = gaussian(m, k), gaussian(k, n, seed=1)
    u, s, vt = linalg.svd_of_product(b, a)
    assert s.shape == (min(m, k, n),)
    assert distance((u * s[None]) @ vt, b @ a) < 1e-12
    np.testing.assert_allclose(s, np.linalg.svd(b @ a, compute_uv=False)[: len(s)])


@pytest.mark.parametrize("shape", SHAPES)
def test_derivatives_of_svd(shape):
    x, dx = gaussian(*shape), gaussian(*shape, seed=1)

    def values_and_projectors(x):
        u, s, vt = linalg.svd(x)
        return s, u[:, :1] @ vt[:1], jnp.sum((u[:, :2] @ u[:, :2].T) ** 3)

    step = 1e-6
    _, tangent = jax.jvp(values_and_projectors, (x,), (dx,))
    ahead, behind = (
        values_and_projectors(x + step * dx),
        values_and_projectors(x - step * dx),
    )
    for got, high, low in zip(tangent, ahead, behind, strict=True):
        np.testing.assert_allclose(got, (high - low) / (2 * step), atol=1e-7)


@pytest.mark.thorough
@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (5, 5)])
def test_batches_equal_single_matrices(shape):
    """With leading axes, under vmap, under both, and in derivatives."""
    x = gaussian(2, 3, *shape)
    b, a = gaussian(2, 3, *shape), gaussian(2, 3, *shape[::-1], seed=1)

    def gradient(x):
        return jax.grad(lambda x: jnp.sum(linalg.polar(x) ** 3))(x)

    for function, inputs in [
        (linalg.svd, (x,)),
        (linalg.svd_of_product, (b, a)),
        (linalg.polar, (x,)),
    ]:
        single = map(jax.jit(function), *_flat(inputs))
        single = jax.tree.map(lambda *x: jnp.stack(x), *single)
        for batched in (function, jax.vmap(function), jax.vmap(jax.vmap(function))):
            together = jax.tree.leaves(jax.jit(batched)(*inputs))
            for got, one in zip(together, jax.tree.leaves(single), strict=True):
                np.testing.assert_allclose(got, one.reshape(got.shape), atol=1e-12)
    single = jnp.stack(list(map(jax.jit(gradient), _flat((x,))[0])))
    together = jax.jit(jax.vmap(jax.vmap(gradient)))(x)
    np.testing.assert_allclose(together, single.reshape(x.shape), atol=1e-10)
    np.testing.assert_allclose(jax.jit(gradient)(x), together, atol=1e-10)


def _flat(arrays):
    return [x.reshape(-1, *x.shape[-2:]) for x in arrays]


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
@pytest.mark.parametrize("function", [linalg.svd, jax.vmap(jax.vmap(linalg.svd))])
def test_only_a_cpu_decomposes_one_matrix_at_a_time(platform, function):
    """Chosen where the program is compiled for, not where it is traced."""
    traced = jax.jit(function).trace(gaussian(2, 3, 9, 4))
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    calls = [
        line
        for line in program.splitlines()
        if "custom_call @lapack" in line or "custom_call @cusolver" in line
    ]
    assert len(calls) >= 2
    batched = ["tensor<2x3x" in line for line in calls]
    assert not any(batched) if platform == "cpu" else all(batched), calls


def test_derivative_of_polar_at_repeated_singular_values():
    x = jnp.asarray(np.linalg.qr(np.asarray(gaussian(6, 3)))[0]) * 2.0
    dx, target, step = gaussian(6, 3, seed=1), gaussian(6, 3, seed=2), 1e-6
    expected = (linalg.polar(x + step * dx) - linalg.polar(x - step * dx)) / (2 * step)
    _, tangent = jax.jvp(linalg.polar, (x,), (dx,))
    assert distance(tangent, expected) < 1e-7
    gradient = jax.grad(lambda x: jnp.sum(linalg.polar(x) * target))(x)
    assert jnp.sum(gradient * dx) == pytest.approx(float(jnp.sum(expected * target)))
