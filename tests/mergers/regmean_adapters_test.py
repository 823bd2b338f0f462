"""RegMean taken apart by adapters: their sum is RegMean, and any merge may follow."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from methods import distance, random_stack, statistics

import jaxmerge as jm

M, N = 9, 11
RANKS = (2, 4, 3)


@pytest.mark.parametrize("ranks", [RANKS, (3, 0, 3)])
def test_they_add_up_to_regmean(ranks):
    stack = random_stack(ranks, M, N)
    options = {"stats": statistics(stack), "ridge": 0.01, "off_diagonal": 0.9}
    changed = jm.regmean_adapters(stack, **options)
    assert changed.ranks == stack.ranks
    np.testing.assert_array_equal(changed.b, stack.b)
    weights = jnp.array([0.5, 2.0, 1.0])
    merged = jm.concat(changed, weights=weights)
    regmean = jm.regmean(stack, **options, weights=weights)
    np.testing.assert_array_equal(jm.dense(merged), jm.dense(regmean))


def test_tasks_with_inputs_apart_keep_their_updates_there():
    """No input of one task reaches the adapter of another."""
    stack = random_stack((2, 2), M, 4)
    seen = [jnp.diag(jnp.array(x)) for x in ([1.0, 1, 0, 0], [0, 0, 1.0, 1])]
    stats = jm.Moments(jnp.ones(2), jnp.zeros((2, 4)), jnp.stack(seen))
    changed = jm.regmean_adapters(stack, stats=stats)
    np.testing.assert_allclose(changed.a[0, :, :2], stack.a[0, :, :2], atol=1e-12)
    np.testing.assert_allclose(changed.a[0, :, 2:], 0, atol=1e-12)


def test_any_merge_may_follow_in_a_pipeline():
    stacks = {"q": random_stack(RANKS, M, N)}
    stats = {"q": statistics(stacks["q"])}
    changed = jm.regmean_adapters(stacks["q"], stats=stats["q"], ridge=0.01)
    for text in ("tsv_m", "elect|trim_whole_model(density=0.5)|core"):
        told = jm.parse(f"{text}|regmean_adapters(ridge=0.01)|scale(0.5)")
        found = told.run(stacks, stats=stats)["q"]
        expected = jm.parse(f"{text}|scale(0.5)").run({"q": changed})["q"]
        assert distance(jm.dense(found), jm.dense(expected)) < 1e-9
    with pytest.raises(ValueError, match="needs statistics"):
        jm.parse("tsv_m|regmean_adapters").run(stacks)


def test_coefficients_of_modules_of_any_shape():
    stacks = {"q": random_stack(RANKS, M, N), "up": random_stack(RANKS, M + 1, N)}
    stats = {module: statistics(stack) for module, stack in stacks.items()}
    phis = dict.fromkeys(stacks, np.ones(sum(RANKS)))
    learned = jm.parse("tara_a|regmean_adapters(ridge=0.1)")
    found = learned.run(stacks, phis=phis, stats=stats)
    expected = jm.parse("regmean(ridge=0.1)").run(stacks, stats=stats)
    for module in stacks:
        assert distance(jm.dense(found[module]), jm.dense(expected[module])) < 1e-9


@pytest.mark.parametrize("learned", [jm.tara_a, jm.tara_b])
def test_learned_merges_begin_where_regmean_ends(learned):
    stack = random_stack(RANKS, M, N)
    stats = statistics(stack)
    expected = jm.dense(jm.regmean(stack, stats=stats, ridge=0.01))
    before = partial(jm.regmean_adapters, ridge=0.01)
    method = jm.compose(learned(initial=1.0), before=before)
    basis = method.prepare(stack, stats=stats)
    merged = method.apply(method.init(basis), basis)
    assert distance(jm.dense(merged), expected) < 1e-9
