"""Laws that every merger obeys, from one table (tests/support/methods.py)."""

from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from methods import (
    BROKEN,
    INPUTS,
    METHODS,
    broken,
    check_jit,
    distance,
    random_stack,
    run,
    task_updates,
    tolerance,
)
from tiers import THOROUGH, in_turn

import jaxmerge as jm

NAMES = sorted(METHODS)
EQUAL, MIXED = (INPUTS[case][0] for case in ("equal", "mixed"))
RARE = ("absent", "overfull")  # in the quick tests the other laws have such adapters


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(case, marks=THOROUGH if case in RARE else ()) for case in INPUTS
    ],
)
def case(request):
    """Tests of one kind of adapters run one after the other."""
    return request.param


of_equal_ranks = pytest.mark.parametrize(
    "case", ["equal"], indirect=True, scope="module"
)


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
    other = stack.replace(a=stack.a[order], b=stack.b[order])
    weights = np.array([0.5, 1.5, 1.0])
    before = METHODS[name](stack, weights=weights)
    after = METHODS[name](other, weights=weights[order])
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
@pytest.mark.parametrize("name", in_turn(NAMES, quick=20))
def test_jit_equals_eager_and_traces_once(name, case):
    check_jit(METHODS[name], *INPUTS[case], dtype=np.float64)


def moved(stack, by):
    direction = random_stack(stack.ranks, 14, 11, seed=5)
    return jax.tree.map(lambda x, d: x + by * d, stack, direction)


STEP = 1e-5


@cache
def merged_at_once(name):
    """Modules of many kinds, their merges and gradients, by one program of a merger."""
    ranks, m, n = INPUTS["equal" if METHODS[name].equal_ranks else "mixed"]
    first, second, third = (random_stack(ranks, m, n, seed=seed) for seed in range(3))
    stacks = {
        "first": first,
        "second": second,
        "third": third,
        "a step further": moved(first, STEP),
        "a step back": moved(first, -STEP),
    } | dependent(first)
    given = METHODS[name].inputs
    inputs = {kind: given(stack) for kind, stack in stacks.items()}
    for kind in ("a step further", "a step back"):
        inputs[kind] = inputs["first"]  # held fast, statistics among them
    together = jax.tree.map(lambda *x: np.stack(x), *stacks.values())
    if METHODS[name].data:
        inputs = jax.tree.map(lambda *x: np.stack(x), *inputs.values())
    else:
        inputs = inputs["first"]
    runs = jax.tree.map(np.asarray, run(name, together, inputs, batched=True))
    return stacks, {
        kind: jax.tree.map(lambda x, i=i: x[i], runs) for i, kind in enumerate(stacks)
    }


def dependent(stack):
    """Adapters of equal directions, in one task or in two, and one that is zero."""
    a, b = np.array(stack.a), np.array(stack.b)
    deficient, duplicate, zero = a.copy(), (a.copy(), b.copy()), b.copy()
    deficient[:, 1] = a[:, 0]
    for x in duplicate:
        x[2] = x[0]
    zero[1] = 0
    return {
        "deficient": stack.replace(a=jnp.asarray(deficient)),
        "duplicate": stack.replace(
            a=jnp.asarray(duplicate[0]), b=jnp.asarray(duplicate[1])
        ),
        "zero": stack.replace(b=jnp.asarray(zero)),
    }


@pytest.mark.parametrize("name", NAMES)
def test_many_modules_as_one_program_equal_a_loop(name):
    stacks, runs = merged_at_once(name)
    for kind in ("first", "second", "third"):
        alone = METHODS[name](stacks[kind])
        assert distance(runs[kind].update, alone) < tolerance(np.float64)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_finite_and_those_of_finite_differences(name):
    _, runs = merged_at_once(name)
    for kind, each in runs.items():
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(each.gradient)), kind
    step = random_stack(runs["first"].gradient.ranks, 14, 11, seed=5)
    difference = runs["a step further"].loss - runs["a step back"].loss
    gradient = runs["first"].gradient
    slope = np.sum(gradient.a * step.a) + np.sum(gradient.b * step.b)
    assert slope == pytest.approx(difference / (2 * STEP), rel=1e-5, abs=1e-6)


@of_equal_ranks
@pytest.mark.parametrize("name", NAMES)
def test_a_call_is_repeatable_and_changes_no_input(name, case):
    stack = random_stack(*INPUTS[case])
    before = jax.tree.map(np.array, stack)
    assert np.array_equal(*(METHODS[name](stack) for _ in range(2)))
    chex.assert_trees_all_equal(stack, before)


@of_equal_ranks
@pytest.mark.parametrize("name", [n for n in NAMES if METHODS[n].random])
def test_random_mergers_need_a_key_and_depend_on_it_alone(name, case):
    stack = random_stack(*INPUTS[case])
    with pytest.raises(TypeError, match="key"):
        METHODS[name].merger(stack)
    same = [METHODS[name](stack, key=jax.random.key(3)) for _ in range(2)]
    assert np.array_equal(*same)
    other = [METHODS[name](stack, key=jax.random.key(k)) for k in range(4, 8)]
    assert any(distance(x, same[0]) > 1e-3 for x in other)


@of_equal_ranks
@pytest.mark.parametrize("name", NAMES)
def test_dependent_adapters_give_finite_updates(name, case):
    """Operation by operation; degenerate_test has compiled programs."""
    stack = random_stack(*INPUTS[case])
    for kind, each in dependent(stack).items():
        assert np.all(np.isfinite(METHODS[name](each))), kind
    assert not np.any(METHODS[name](stack.replace(b=stack.b * 0)))


@of_equal_ranks
@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_finite_stays_visible(name, case):
    """A fit that blew up never merges to an update that looks clean."""
    stack = random_stack(*INPUTS[case])
    for kind in BROKEN:
        merged = METHODS[name](broken(stack, kind))
        assert not np.all(np.isfinite(merged)), kind


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
    left, right = np.eye(14), np.eye(11)
    values = ([3.0, 2.0, 0.5], [5.0, 4.0, 1.0], [7.0, 6.0, 1.5])
    stack = jm.stack_adapters(
        [
            (left[:, 3 * t : 3 * t + 3] * s, right[3 * t : 3 * t + 3])
            for t, s in enumerate(values)
        ],
        dtype=np.float64,
    )
    total = METHODS["concat"](stack)
    assert distance(METHODS["tsv_m"](stack), total) < 1e-12
    for floor in (1.0, 0.5, 0.1):
        calibrated = jm.dense(jm.svc(jm.concat(stack), stack=stack, floor=floor))
        assert distance(calibrated, total * 3 / (1 + 2 * floor)) < 1e-12


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
    a, b = rng.normal(size=(3, 11)), rng.normal(size=(14, 3))
    d, e = rng.normal(size=(3, 3)), rng.normal(size=(3, 14))
    stack = jm.stack_adapters(
        [(e[t][:, None] * b, d[t][:, None] * a) for t in range(3)], dtype=np.float64
    )
    exact = sum(np.diag(e[t]) @ b @ np.diag(d[t]) @ a for t in range(3))
    for name in ("concat", "core/total", "knots/total"):
        assert distance(METHODS[name](stack), exact) < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_one_adapter_comes_back(name):
    stack = random_stack((4,), 14, 11)
    merged = METHODS[name](stack)
    same = distance(merged, task_updates(stack)[0]) < tolerance(np.float64)
    assert same == METHODS[name].one
