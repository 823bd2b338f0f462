"""Decompositions: exactness, null directions, derivatives; and the exact threshold."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec
from methods import distance, tolerance
from tiers import in_turn

import jaxmerge as jm
from jaxmerge import linalg
from jaxmerge.mergers.trim import kept_count

SHAPES = [(7, 4), (4, 7), (5, 5), (1, 6), (6, 1)]


def gaussian(*shape, seed=0, dtype=np.float64):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


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


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(
        st.floats(
            allow_nan=False, allow_infinity=False, allow_subnormal=False, width=32
        ),
        min_size=6,
        max_size=6,
    ),
    count=st.integers(0, 6),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_threshold_is_the_exact_order_statistic(values, count, dtype):
    x = np.array(values, dtype)
    blocks = [jnp.asarray(x[None, :2]), jnp.asarray(x[None, 2:].reshape(1, 2, 2))]
    threshold = float(jm.magnitude_threshold(blocks, count)[0])
    expected = np.inf if count == 0 else float(np.sort(np.abs(x))[6 - count])
    assert threshold == expected


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("shape", "dtype"),
    in_turn([(2, 3, 70001), (3, 300, 1025)], [np.float32, np.float64]),
)
def test_threshold_of_large_blocks(shape, dtype):
    """More entries than half precision can count, in rows and in all."""
    x = gaussian(*shape, dtype=dtype)
    ordered = np.sort(np.abs(np.asarray(x)).reshape(shape[0], -1))[:, ::-1]
    for count in (1, ordered.shape[1] // 5, ordered.shape[1]):
        threshold = jm.magnitude_threshold([x[:, :1], x[:, 1:]], count)
        assert np.array_equal(threshold, ordered[:, count - 1])


def test_threshold_counts_what_is_not_finite_as_the_largest():
    x = jnp.array([[np.nan, 3.0, -np.inf, 2.0, -1.0]])
    thresholds = [float(jm.magnitude_threshold([x], count)[0]) for count in range(6)]
    assert thresholds == [np.inf, np.inf, np.inf, 3, 2, 1]


def test_threshold_of_a_row_too_long_for_single_precision():
    row = jnp.ones((1, 2**24 + 1), np.float32)
    assert jm.magnitude_threshold([row], row.size) == 1.0


@pytest.mark.thorough
@pytest.mark.parametrize("axis", [1, 2])
def test_threshold_of_spread_blocks_moves_only_counts(axis):
    """Neither rows nor columns that are spread over devices are gathered."""
    names = [None, None, None]
    names[axis] = "modules"
    sharding = NamedSharding(jm.module_mesh(), PartitionSpec(*names))
    x = gaussian(2, 64, 32)
    spread = jax.device_put(x, sharding)
    program = jax.jit(jm.magnitude_threshold).lower([spread], 99).compile().as_text()
    for collective in ("all-gather", "all-to-all", "collective-permute"):
        assert collective not in program
    assert "all-reduce" in program
    expected = jm.magnitude_threshold([x], 99)
    assert np.array_equal(jm.magnitude_threshold([spread], 99), expected)


@pytest.mark.parametrize(
    ("density", "size"), in_turn([0.01, 0.2, 0.5, 1.0], [64, 7, 1])
)
def test_trimming_keeps_the_floor_of_the_share(size, density):
    x = gaussian(2, 1, size)
    kept = jm.keep_largest(x, density)
    traced = jax.jit(jm.keep_largest)(x, jnp.asarray(density))
    assert np.array_equal(kept, traced)
    assert np.all(np.count_nonzero(kept, axis=(1, 2)) == int(density * size))
    ties = jm.keep_largest(jnp.ones((1, 1, 4)), 0.25)
    assert np.count_nonzero(ties) == 4


@pytest.mark.parametrize("of", [float, np.float64, np.float32, jnp.float32, "traced"])
@pytest.mark.parametrize("x64", [True, False])
def test_a_density_keeps_the_number_that_is_meant(of, x64):
    """Also where the product of floats is just below it: 0.29 * 100 is 28.99..."""
    counts = kept_count
    if of == "traced":
        of, counts = np.float32, jax.jit(kept_count, static_argnums=1)
    with jax.enable_x64(x64):
        for entries in (100, 700, 10_000):
            kept = [int(counts(of(k / 100), entries)) for k in range(1, 101)]
            assert kept == [k * entries // 100 for k in range(1, 101)]
        assert int(counts(of(0.5), 10_000_000)) == 5_000_000  # and not one more
        assert int(counts(of(0.2899), 100)) == 28
        assert int(counts(of(29.5 / 100), 100)) == 29
        assert int(counts(of(1), 2**20 + 1)) == 2**20 + 1


def test_a_compiled_sweep_keeps_what_a_merge_keeps():
    x = gaussian(2, 10, 10)
    densities = np.array([0.29, 0.57, 0.58], np.float32)
    sweep = jax.vmap(jm.keep_largest, in_axes=(None, 0))(x, densities)
    for density, kept, count in zip(
        (0.29, 0.57, 0.58), sweep, (29, 57, 58), strict=True
    ):
        assert np.array_equal(kept, jm.keep_largest(x, density))
        assert np.all(np.count_nonzero(kept, axis=(1, 2)) == count)


@pytest.mark.parametrize("of", [float, np.float32, jnp.float32, jnp.asarray])
@pytest.mark.parametrize("density", [0.0, -0.1, 1.5, float("nan"), float("inf")])
def test_densities_outside_the_range_are_refused(density, of):
    """Whatever holds the number, unless it is traced."""
    stack = jm.stack_adapters([(np.ones((4, 1)), np.ones((1, 5)))])
    density = of(density)
    for build in (jm.trim, jm.dare, partial(jm.trim_whole_model, space=jm.full)):
        with pytest.raises(ValueError, match=r"in \(0, 1\]; got"):
            build(jm.elect, density=density)
    for merge in (
        partial(jm.keep_largest, stack.b),
        partial(jm.ties, stack.b),
        partial(jm.robust_merge, stack),
    ):
        with pytest.raises(ValueError, match=r"in \(0, 1\]; got"):
            merge(density=density)
    with pytest.raises(ValueError, match="epsilon"):
        jm.della(jm.elect, density=density, epsilon=0.1)
    with pytest.raises(ValueError, match="epsilon"):
        jm.della(jm.elect, density=of(0.5), epsilon=0.6)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "no task"),
        ([None, None], "no task"),
        ([(np.ones((4, 2)), np.ones((3, 5)))], "task 0"),
        ([(np.ones(4), np.ones((1, 5)))], "task 0"),
        ([(np.ones((4, 0)), np.ones((0, 5)))], "rank 0"),
        (
            [(np.ones((4, 1)), np.ones((1, 5))), (np.ones((4, 1)), np.ones((1, 6)))],
            r"\(4, 5\), \(4, 6\)",
        ),
    ],
)
def test_stack_adapters_refuses_what_does_not_fit(pairs, message):
    with pytest.raises(ValueError, match=f"layer.q: .*{message}"):
        jm.stack_adapters(pairs, name="layer.q")


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.int32, "complex64"])
def test_stack_adapters_refuses_dtypes_without_decompositions(dtype):
    pair = (np.ones((4, 1)), np.ones((1, 5)))
    message = f"layer.q: .*{np.dtype(dtype).name}.* float32"
    with pytest.raises(ValueError, match=message):
        jm.stack_adapters([pair], dtype=dtype, name="layer.q")


def test_stack_adapters_does_not_halve_the_precision():
    pair = (np.ones((4, 1)), np.ones((1, 5)))
    assert jm.stack_adapters([pair], dtype=np.float64).b.dtype == np.float64
    with jax.enable_x64(False):
        assert jm.stack_adapters([pair]).b.dtype == np.float32
        with pytest.raises(ValueError, match="set jax_enable_x64"):
            jm.stack_adapters([pair], dtype=np.float64)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.int32, np.float64])
def test_factors_of_any_dtype_are_computed_in_single_precision(dtype):
    rng = np.random.default_rng(0)
    b = jnp.asarray(8 * rng.normal(size=(6, 2)), dtype)
    a = jnp.asarray(8 * rng.normal(size=(2, 5)), dtype)
    stack = jm.stack_adapters([(b, a), (b, a)])
    assert stack.b.dtype == stack.a.dtype == np.float32
    assert np.array_equal(stack.b[1], b.astype(np.float32))
    merged = jm.dense(jm.tsv_m(stack))
    assert merged.dtype == np.float32
    assert np.all(np.isfinite(merged))


def test_weights_must_fit_the_tasks():
    stack = jm.stack_adapters([(np.ones((4, 1)), np.ones((1, 5)))] * 2)
    for merger in (jm.concat, jm.tsv_m, jm.core_space(jm.total), jm.robust_merge):
        with pytest.raises(ValueError, match="each of the 2 tasks"):
            merger(stack, weights=[1.0, 2.0, 3.0])


def test_robust_merge_refuses_mixed_ranks():
    stack = jm.stack_adapters(
        [(np.ones((4, 1)), np.ones((1, 5))), (np.ones((4, 2)), np.ones((2, 5)))]
    )
    with pytest.raises(ValueError, match="ranks must be equal"):
        jm.robust_merge(stack)
