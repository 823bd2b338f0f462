"""Stacks of adapters: which shapes and dtypes fit, and weights and ranks of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmerge as jm


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
