"""Every merger gives the same compiled and operation by operation.

A file of its own, because the programs of single operations are many.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from methods import METHODS, distance, random_stack, tolerance

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
