"""NSC's ratio: what it measures, and gradients where the published form has none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from methods import random_stack

import jaxmerge as jm

N = 12


def made(rank=3, tokens=(4, 5), seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(*tokens, N))), jnp.asarray(
        rng.normal(size=(rank, N))
    )


def test_it_is_the_published_ratio():
    inputs, a = made()
    gram = np.linalg.inv(a @ a.T)
    z = np.asarray(inputs).reshape(-1, N)
    seen = np.einsum("tn,rn,rs,sm,tm->t", z, a, gram, a, z)
    exact = np.mean(np.sqrt(1 - seen / np.sum(z**2, 1)))
    ratio = jm.null_space_ratio(inputs, jm.row_basis(a))
    assert ratio == pytest.approx(exact, rel=1e-12)
    single = jm.null_space_ratio(inputs.astype(jnp.float32), jm.row_basis(a))
    assert single == pytest.approx(exact, rel=1e-6)


def test_only_the_row_space_matters():
    inputs, a = made()
    turned = jnp.asarray(np.diag([10.0, 0.1, -3.0])) @ a
    padded = jnp.concatenate([turned, a[:1], jnp.zeros((2, N))])  # deficient, padded
    ratios = [jm.null_space_ratio(inputs, jm.row_basis(x)) for x in (a, padded)]
    assert ratios[0] == pytest.approx(float(ratios[1]), rel=1e-9)
    stack = random_stack((2, 4, 0), 5, N)
    bases = jm.row_basis(stack.a)
    assert bases.shape == (3, N, 4)
    ratios = jax.vmap(jm.null_space_ratio, in_axes=(None, 0))(inputs, bases)
    assert ratios[2] == pytest.approx(1.0)  # no adapter sees nothing
    one = jm.null_space_ratio(inputs, jm.row_basis(stack.a[0, :2]))
    assert ratios[0] == pytest.approx(float(one), rel=1e-9)


def test_masked_tokens_do_not_count():
    inputs, a = made()
    keep = jnp.arange(5)[None, :] < jnp.array([5, 1, 3, 2])[:, None]
    poisoned = jnp.where(keep[..., None], inputs, jnp.nan)
    ratio = jm.null_space_ratio(poisoned, jm.row_basis(a), mask=keep)
    exact = jm.null_space_ratio(inputs[keep], jm.row_basis(a))
    assert ratio == pytest.approx(float(exact), rel=1e-12)
    nothing = jm.null_space_ratio(inputs, jm.row_basis(a), mask=jnp.zeros_like(keep))
    assert nothing == 0


@pytest.mark.parametrize("kind", ["inside", "outside", "zero", "masked"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gradients_are_finite(kind, dtype):
    inputs, a = made()
    basis = jm.row_basis(a)
    mask = None
    if kind == "inside":  # the ratio is 0: the slope of the published form is infinite
        inputs = jnp.einsum("...r,rn->...n", inputs[..., :3], a)
        inputs = inputs.at[0, 0].set(basis[:, 0])
    elif kind == "outside":
        inputs = inputs - inputs @ basis @ basis.T
    elif kind == "zero":
        inputs = inputs.at[1].set(0)
    else:
        mask = jnp.zeros(inputs.shape[:-1], bool).at[0].set(True)
        inputs = inputs.at[1].set(jnp.inf)

    def ratio(x):
        return jm.null_space_ratio(x, basis.astype(dtype), mask=mask)

    value, gradient = jax.value_and_grad(ratio)(inputs.astype(dtype))
    expected = {"inside": 0, "outside": 1}
    if kind in expected:
        assert value == pytest.approx(
            expected[kind], abs=20 * float(np.finfo(dtype).eps)
        )
    assert 0 <= value <= 1 + 1e-6
    assert np.all(np.isfinite(gradient))


def test_gradient_equals_finite_differences():
    inputs, a = made()
    basis = jm.row_basis(a)
    direction, _ = made(seed=1)

    def along(step):
        return jm.null_space_ratio(inputs + step * direction, basis)

    expected = (along(1e-6) - along(-1e-6)) / 2e-6
    assert jax.grad(along)(0.0) == pytest.approx(float(expected), rel=1e-6)


def test_low_precision_inputs_are_computed_in_float32():
    inputs, a = made()
    ratio = jm.null_space_ratio(inputs.astype(jnp.bfloat16), jm.row_basis(a))
    assert ratio.dtype == jnp.float32
    assert ratio == pytest.approx(
        float(jm.null_space_ratio(inputs, jm.row_basis(a))), rel=2e-2
    )
