"""What mergers make of adapters that are zero, dependent or not finite."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from methods import BROKEN, METHODS, broken, distance, random_stack, tolerance
from tiers import in_turn

import jaxmerge as jm

NAMES = sorted(METHODS)
SPECTRAL = ["full/tsv", "core/tsv", "tsv_m", "core/iso_c"]
EQUAL = (3, 3, 3)


@pytest.mark.parametrize(
    ("name", "dtype", "kind"),
    in_turn(
        NAMES,
        [np.float32, np.float64],
        ["zero", "duplicate", "deficient", "all_zero", "K>m"],
        quick=20,
    ),
)
def test_degenerate_adapters_give_finite_updates(name, dtype, kind):
    stack = random_stack(EQUAL, 14, 11, dtype=dtype)
    if kind == "zero":
        stack = stack.replace(b=stack.b.at[1].set(0))
    elif kind == "all_zero":
        stack = stack.replace(b=stack.b * 0)
    elif kind == "duplicate":
        stack = stack.replace(
            a=stack.a[jnp.zeros(3, int)], b=stack.b[jnp.zeros(3, int)]
        )
    elif kind == "deficient":
        stack = stack.replace(a=stack.a.at[:, 2].set(stack.a[:, 1]))
    else:
        stack = random_stack((4, 4, 4), 5, 7, dtype=dtype)
    merged = METHODS[name].compiled(stack)
    assert merged.dtype == dtype
    assert np.all(np.isfinite(merged))
    if kind == "all_zero":
        assert np.all(np.asarray(merged) == 0)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_not_finite_stays_visible_in_updates_and_whole_models(kind):
    stack = random_stack(EQUAL, 14, 11)
    bad = broken(stack, kind)
    low_rank, clean = jm.concat(bad), jm.concat(stack)
    for update in (low_rank, jm.dense(low_rank)):
        assert not np.isfinite(jm.norm(update))
        for post in (
            jm.isotropize,
            partial(jm.truncate, rank=2),
            partial(jm.svc, stack=bad),
            partial(jm.svc, stack=stack),
        ):
            assert not np.all(np.isfinite(jm.dense(post(update)))), post
    assert not np.all(np.isfinite(jm.dense(jm.svc(clean, stack=bad))))
    assert list(np.isfinite(jm.task_norms(bad))) == [True, False, True]
    assert not np.all(np.isfinite(jm.balance(bad).b))
    for space in (jm.full, jm.core, jm.knots):
        stacks = {"q": stack, "k": bad}
        merged = jm.trim_whole_model(jm.elect, space, density=0.01)(stacks)
        assert not np.all(np.isfinite(jm.dense(merged["k"]))), space


@pytest.mark.thorough
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("sign", [jm.sign_of_sum, jm.sign_of_count])
def test_rules_neither_outvote_nor_drop_what_is_not_finite(value, sign):
    """One entry in many, and against the sign of the other tasks."""
    matrices = jnp.asarray(np.random.default_rng(0).normal(size=(3, 6, 5)))
    other = -1.0 if value > 0 else 1.0
    matrices = matrices.at[:, 2, 3].set(jnp.array([other, value, other]))
    key, rules = jax.random.key(0), [jm.emr, jm.total]
    for combine in (jm.mean_of_agreeing, jm.sum_of_agreeing, jm.largest_of_agreeing):
        elect = partial(jm.elect, sign=sign, combine=combine)
        rules += [elect, jm.trim(elect, density=0.05), jm.trim(elect, density=1.0)]
        rules += [jm.dare(elect, density=0.05), jm.della(elect, density=0.1)]
    for rule in rules:
        merged = np.asarray(rule(matrices, key=key))
        assert not np.isfinite(merged[2, 3]), rule
        assert np.count_nonzero(np.isfinite(merged)) == merged.size - 1
    rescalers = jm.emr_rescalers({"q": jm.emr_parts(matrices)})
    assert not np.isfinite(rescalers[1])


@pytest.mark.parametrize(("name", "dtype"), in_turn(SPECTRAL, [np.float32, np.float64]))
def test_zero_adapter_is_skipped_by_spectral_rules(name, dtype):
    stack = random_stack((3, 3, 3), 14, 11, dtype=dtype)
    zero = stack.replace(b=stack.b.at[2].set(0))
    two = stack.replace(a=stack.a[:2], b=stack.b[:2], ranks=(3, 3))
    merged, alone = METHODS[name].compiled(zero), METHODS[name].compiled(two)
    assert distance(merged, alone) < tolerance(dtype)


@pytest.mark.parametrize(("name", "dtype"), in_turn(SPECTRAL, [np.float32, np.float64]))
def test_task_of_weight_zero_is_skipped_by_spectral_rules(name, dtype):
    stack = random_stack((3, 3, 3), 14, 11, dtype=dtype)
    weights = jnp.array([0.5, 0.0, 2.0], dtype)
    others = np.array([0, 2])
    two = stack.replace(a=stack.a[others], b=stack.b[others], ranks=(3, 3))
    alone = METHODS[name].compiled(two, weights=weights[others])
    merged = METHODS[name].compiled(stack, weights=weights)
    assert distance(merged, alone) < tolerance(dtype)


@partial(jax.jit, static_argnums=0)
def trimmed(space, stack, density):
    return jm.dense(jm.in_space(space, jm.trim(jm.elect, density=density))(stack))


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("space", "density"),
    in_turn(["full", "core", "knots", "knots_unscaled"], [0.3, 0.5, 0.7]),
)
def test_zero_adapter_does_not_change_what_a_density_keeps(space, density):
    """Its null directions are no entries, module by module and over a whole model."""
    stack = random_stack((3, 3), 14, 11)
    more = stack.replace(
        a=jnp.concatenate([stack.a, stack.a[:1] * 0]),
        b=jnp.concatenate([stack.b, stack.b[:1] * 0]),
        ranks=(3, 3, 3),
    )
    space = getattr(jm, space)
    merge = jm.in_space(space, partial(jm.ties, density=density))
    whole = jm.trim_whole_model(jm.elect, space, density=density)
    without = jm.dense(merge(stack))
    assert distance(jm.dense(merge(more)), without) < 1e-9
    assert distance(trimmed(space, more, density), without) < 1e-9
    alone, doubled = {"q": stack, "k": stack}, {"q": more, "k": more}
    assert distance(jm.dense(whole(doubled)["k"]), jm.dense(whole(alone)["k"])) < 1e-9
