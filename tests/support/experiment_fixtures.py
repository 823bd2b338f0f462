"""What tests of the common comparison share."""

import jax
import pytest


@pytest.fixture
def as_outside_of_tests():
    """Optimisers of optax mix Python and array types."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
