"""Routes to the same result: spaces, factors and matrices."""

import numpy as np
import pytest
from methods import (
    INPUTS,
    METHODS,
    Method,
    distance,
    random_stack,
    task_updates,
    tolerance,
)
from tiers import THOROUGH, in_turn

import jaxmerge as jm

CASES = [*INPUTS]
DTYPES = [np.float64, np.float32]


@pytest.mark.parametrize("rule", ["total", "mean"])
@pytest.mark.parametrize(("case", "dtype"), in_turn(CASES, DTYPES))
def test_linear_rules_agree_in_all_spaces(rule, dtype, case):
    stack = random_stack(*INPUTS[case], dtype=dtype)
    weights = np.linspace(-1, 2, len(stack.ranks))
    exact = np.einsum("t,tmn->mn", weights, task_updates(stack))
    if rule == "mean":
        exact = exact / len(stack.present)
    factored = {"total": "concat", "mean": "average"}[rule]
    for name in (f"full/{rule}", f"core/{rule}", f"knots/{rule}", factored):
        merged = METHODS[name].compiled(stack, weights=weights)
        assert merged.dtype == dtype
        assert distance(merged, exact) < tolerance(dtype), name


def cart_of_three(matrices, **extra):
    """At a rank, which elsewhere is a share of the size of the space."""
    return jm.cart(matrices, rank_fraction=3 / min(matrices.shape[1:]))


IN_BOTH_SPACES = {
    rule: (METHODS[f"core/{rule}"], METHODS[f"full/{rule}"])
    for rule in ("tsv", "iso_c", "iso_cts")
} | {
    "cart": (Method(jm.core_space(cart_of_three)), Method(jm.full_space(cart_of_three)))
}


@pytest.mark.parametrize(("rule", "case"), in_turn([*IN_BOTH_SPACES], CASES))
def test_spectral_rules_agree_in_full_and_core_space(rule, case):
    stack = random_stack(*INPUTS[case])
    merged, exact = (method.compiled(stack) for method in IN_BOTH_SPACES[rule])
    assert distance(merged, exact) < tolerance(np.float64)


ISOTROPIC_SUM = Method(jm.then(jm.concat, jm.isotropize))


@pytest.mark.parametrize(("case", "dtype"), in_turn(CASES, DTYPES))
def test_factored_routes_equal_rules_in_core_space(case, dtype):
    stack = random_stack(*INPUTS[case], dtype=dtype)
    weights = np.linspace(0.5, 2, len(stack.ranks))
    for factored, rule in ((METHODS["tsv_m"], "tsv"), (ISOTROPIC_SUM, "iso_c")):
        merged = factored.compiled(stack, weights=weights)
        core = METHODS[f"core/{rule}"].compiled(stack, weights=weights)
        assert distance(merged, core) < tolerance(dtype)


PICO_IN_CORE = Method(jm.pico(jm.core_space(jm.tsv)))


@pytest.mark.parametrize(
    ("m", "n"),
    [
        (3, 16),
        (1, 5),
        pytest.param(16, 3, marks=THOROUGH),
        pytest.param(3, 3, marks=THOROUGH),
    ],
)
@pytest.mark.parametrize(
    "dtype", [pytest.param(np.float32, marks=THOROUGH), np.float64]
)
def test_more_tasks_than_directions(m, n, dtype):
    """As in a score layer of few classes: every task still has a say in TSV-M."""
    stack = random_stack((2, 1, 2, 2), m, n, dtype=dtype)
    weights = np.array([0.5, 1.0, 2.0, 1.5])
    merged = METHODS["full/tsv"].compiled(stack, weights=weights)
    assert merged.dtype == dtype
    assert np.linalg.norm(merged) > 0.5
    for name in ("core/tsv", "tsv_m"):
        other = METHODS[name].compiled(stack, weights=weights)
        assert other.dtype == dtype
        assert distance(other, merged) < tolerance(dtype), name
    pico = PICO_IN_CORE.compiled(stack)
    assert distance(METHODS["pico(tsv_m)"].compiled(stack), pico) < tolerance(dtype)
    assert np.linalg.norm(pico) > 0.5
    tsv_m = METHODS["tsv_m"].compiled
    for task in range(4):
        without = stack.replace(b=stack.b.at[task].set(0))
        assert distance(tsv_m(without), tsv_m(stack)) > 1e-3
