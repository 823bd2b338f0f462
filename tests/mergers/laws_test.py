"""Laws that every merger obeys, from one table (tests/support/methods.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from methods import (
    METHODS,
    Method,
    check_jit,
    distance,
    random_stack,
    task_updates,
    tolerance,
)

import jaxmerge as jm

NAMES = sorted(METHODS)
EQUAL = (3, 3, 3)
MIXED = (2, 4, 3)
INPUTS = {  # nine directions in all where they fit, so that tests share programs
    "equal": (EQUAL, 14, 11),
    "mixed": (MIXED, 14, 11),
    "absent": ((3, 0, 3, 3), 14, 11),
    "overfull": ((4, 4, 4), 10, 7),
}


RARE = ("absent", "overfull")  # degenerate_test has them for every merger as well


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(case, marks=pytest.mark.thorough if case in RARE else ())
        for case in INPUTS
    ],
)
def case(request):
    """Tests of one kind of adapters run one after the other."""
    return request.param


of_equal_ranks = pytest.mark.parametrize(
    "case", ["equal"], indirect=True, scope="module"
)


@pytest.mark.parametrize("name", NAMES)
def test_one_adapter_comes_back(name):
    stack = random_stack((4,), 12, 9)
    merged = METHODS[name].compiled(stack)
    same = distance(merged, task_updates(stack)[0]) < tolerance(np.float64)
    assert same == METHODS[name].one


@pytest.mark.parametrize("rule", ["total", "mean"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
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


@pytest.mark.parametrize("rule", IN_BOTH_SPACES)
def test_spectral_rules_agree_in_full_and_core_space(rule, case):
    stack = random_stack(*INPUTS[case])
    merged, exact = (method(stack) for method in IN_BOTH_SPACES[rule])
    assert distance(merged, exact) < tolerance(np.float64)


ISOTROPIC_SUM = Method(jm.then(jm.concat, jm.isotropize))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_factored_routes_equal_rules_in_core_space(case, dtype):
    stack = random_stack(*INPUTS[case], dtype=dtype)
    weights = np.linspace(0.5, 2, len(stack.ranks))
    for factored, rule in ((METHODS["tsv_m"], "tsv"), (ISOTROPIC_SUM, "iso_c")):
        merged = factored.compiled(stack, weights=weights)
        core = METHODS[f"core/{rule}"].compiled(stack, weights=weights)
        assert distance(merged, core) < tolerance(dtype)


PICO_IN_CORE = Method(jm.pico(jm.core_space(jm.tsv)))


@pytest.mark.parametrize(("m", "n"), [(3, 16), (16, 3), (1, 5), (3, 3)])
@pytest.mark.parametrize(
    "dtype", [pytest.param(np.float32, marks=pytest.mark.thorough), np.float64]
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


def with_gauge(stack, seed=1):
    """Other factors of the same updates."""
    rng = np.random.default_rng(seed)
    b, a = np.array(stack.b), np.array(stack.a)
    for t, r in enumerate(stack.ranks):
        turn = rng.normal(size=(r, r)) + 3 * np.eye(r)
        b[t, :, :r] = b[t, :, :r] @ turn
        a[t, :r] = np.linalg.solve(turn, a[t, :r])
    return stack.replace(b=jnp.asarray(b), a=jnp.asarray(a))


@of_equal_ranks
@pytest.mark.parametrize("name", NAMES)
def test_order_of_tasks(name, case):
    stack = random_stack(*INPUTS[case])
    order = np.array([2, 0, 1])
    moved = stack.replace(a=stack.a[order], b=stack.b[order])
    weights = np.array([0.5, 1.5, 1.0])
    before = METHODS[name](stack, weights=weights)
    after = METHODS[name](moved, weights=weights[order])
    assert (distance(after, before) < 1e-9) == METHODS[name].order


@of_equal_ranks
@pytest.mark.parametrize("name", NAMES)
def test_gauge(name, case):
    stack = random_stack(*INPUTS[case])
    other = METHODS[name](with_gauge(stack))
    assert (distance(other, METHODS[name](stack)) < 1e-8) == METHODS[name].gauge


@of_equal_ranks
@pytest.mark.parametrize("name", NAMES)
def test_absent_task_changes_nothing(name, case):
    stack = random_stack(*INPUTS[case])
    more = stack.replace(
        a=jnp.concatenate([stack.a, stack.a[:1] * 0]),
        b=jnp.concatenate([stack.b, stack.b[:1] * 0]),
        ranks=(*EQUAL, 0),
    )
    assert distance(METHODS[name](more), METHODS[name](stack)) == 0


@of_equal_ranks
@pytest.mark.parametrize("name", NAMES)
def test_doubling_alpha_is_doubling_b(name, case):
    """Both are the same fold into b, so the update doubles where merging is linear."""
    stack = random_stack(*INPUTS[case])
    doubled = METHODS[name](stack.replace(b=2 * stack.b))
    assert distance(doubled, 2 * METHODS[name](stack)) < 1e-9


@of_equal_ranks
@pytest.mark.parametrize("name", NAMES)
def test_jit_equals_eager_and_traces_once(name, case):
    check_jit(METHODS[name], *INPUTS[case], dtype=np.float64)


@pytest.mark.parametrize("name", NAMES)
def test_more_padding_changes_nothing(name, case):
    ranks, m, n = INPUTS[case]
    METHODS[name].check_fits(ranks)
    stack = random_stack(ranks, m, n)
    padded = stack.replace(
        a=jnp.pad(stack.a, ((0, 0), (0, 3), (0, 0))),
        b=jnp.pad(stack.b, ((0, 0), (0, 0), (0, 3))),
    )
    assert distance(METHODS[name](padded), METHODS[name](stack)) < 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_rank_of_the_result(name, case):
    ranks, m, n = INPUTS[case]
    METHODS[name].check_fits(ranks)
    bound = {"sum": sum(ranks), "max": max(ranks), "full": min(m, n)}[
        METHODS[name].rank
    ]
    merged = METHODS[name](random_stack(ranks, m, n))
    assert np.linalg.matrix_rank(merged, tol=1e-8) <= min(bound, m, n)
    assert np.linalg.norm(merged) > 0


def test_orthogonal_tasks():
    """Disjoint row and column spaces: TSV-M is the sum, SVC knows the owner."""
    eye = np.eye(8)
    stack = jm.stack_adapters(
        [
            (eye[:, :2] * [3.0, 2.0], eye[:2]),
            (eye[:, 2:5] * [5.0, 4.0, 1.0], eye[2:5]),
        ],
        dtype=np.float64,
    )
    total = METHODS["concat"](stack)
    assert distance(METHODS["tsv_m"](stack), total) < 1e-12
    for floor in (1.0, 0.5, 0.1):
        calibrated = jm.dense(jm.svc(jm.concat(stack), stack=stack, floor=floor))
        assert distance(calibrated, total * 2 / (1 + floor)) < 1e-12


def test_pico_ignores_the_scale_of_its_merger():
    stack = random_stack(EQUAL, 14, 11)
    tripled = jm.pico(jm.then(jm.concat, lambda u, **_: jm.scale(u, by=3.0)))
    assert distance(jm.dense(tripled(stack)), METHODS["pico(concat)"](stack)) < 1e-12
    norms = np.linalg.norm(task_updates(stack), axis=(1, 2))
    size = np.linalg.norm(METHODS["pico(concat)"](stack))
    assert size == pytest.approx(norms.mean(), rel=1e-12)


def test_truncation_is_optimal_and_loses_the_tail():
    stack = random_stack(*INPUTS["mixed"])
    merged = METHODS["concat"](stack)
    s = np.linalg.svd(merged, compute_uv=False)
    for rank in (1, 5, 30):
        cut = jm.truncate(jm.concat(stack), rank=rank)
        lost = np.linalg.norm(merged - jm.dense(cut))
        assert lost == pytest.approx(np.linalg.norm(s[rank:]), abs=1e-10)
        assert cut.b.shape[1] == min(rank, sum(MIXED))


@pytest.mark.parametrize("thin", [jm.dare, jm.della])
def test_random_dropping_is_unbiased(thin):
    stack = random_stack(EQUAL, 14, 11)
    rule = jm.full_space(thin(jm.total, density=0.5))
    keys = jax.random.split(jax.random.key(0), 400)
    draws = jax.jit(jax.vmap(lambda key: rule(stack, key=key)))(keys)
    exact = METHODS["concat"](stack)
    assert distance(draws.mean(0), exact) < 0.08
    assert distance(draws[0], exact) > 0.3


def test_vera_is_lora_with_scaled_factors():
    """Shared frozen A and B with per-task vectors, as any other adapters."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 9)), rng.normal(size=(12, 4))
    d, e = rng.normal(size=(3, 4)), rng.normal(size=(3, 12))
    stack = jm.stack_adapters(
        [(e[t][:, None] * b, d[t][:, None] * a) for t in range(3)], dtype=np.float64
    )
    exact = sum(np.diag(e[t]) @ b @ np.diag(d[t]) @ a for t in range(3))
    for name in ("concat", "core/total", "knots/total"):
        assert distance(METHODS[name](stack), exact) < 1e-12
