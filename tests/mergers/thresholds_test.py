"""The exact threshold of magnitudes, and how many entries a density keeps."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec
from methods import gaussian
from tiers import in_turn

import jaxmerge as jm
from jaxmerge.mergers.trim import kept_count


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
