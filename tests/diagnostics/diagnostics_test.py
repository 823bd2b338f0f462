"""Diagnostics against explicit stacks in float64, and their laws."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import in_turn

import jaxmerge as jm
from jaxmerge import diagnostics
from jaxmerge.diagnostics import module
from jaxmerge.diagnostics.module import diagnose_each, diagnose_within
from jaxmerge.stacks import task_norms

DIAGNOSE = jax.jit(diagnostics.diagnose)
EFFECTIVE_RANKS = jax.jit(diagnostics.effective_ranks)
CROWDING = jax.jit(diagnostics.crowding)
OVERLAPS = jax.jit(diagnostics.overlaps)
SHARING_SCORES = jax.jit(diagnostics.sharing_scores)
CLOSE = partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11)


def random_pairs(ranks, m=7, n=6, seed=0):
    draw = np.random.default_rng(seed).standard_normal
    return [None if r == 0 else (draw((m, r)), draw((r, n))) for r in ranks]


def stacked(pairs):
    return jm.stack_adapters(pairs, dtype=jnp.float64)


def entropy_rank(s):
    s = s[s > 1e-7 * s.max()] if s.max() > 0 else s[:0]
    p = s / s.sum()
    return np.exp(-np.sum(p * np.log(p))) if p.size else 0.0


def values_of(rows):
    return np.linalg.svd(np.stack(rows), compute_uv=False)


MIXED = random_pairs([3, 1, 0, 2])


def degenerate():
    """Name -> adapters with which a careless formula divides by zero."""
    one, two = random_pairs([2, 3], seed=1)
    zero = (np.zeros((7, 2)), one[1])
    deficient = (np.outer(one[0][:, 0], [1.0, 2.0]), one[1])
    dead_rows = (one[0], np.zeros((2, 6)))
    return {
        "one": [one],
        "zero beside another": [zero, two],
        "all zero": [zero, zero],
        "duplicates": [one, one, one],
        "opposites": [one, (-one[0], one[1])],
        "deficient": [deficient, two],
        "A is zero": [dead_rows, two],
        "mixed and absent": MIXED,
        "wide": random_pairs([7, 9], seed=2),
    }


# --- against explicit stacks -------------------------------------------------------


def test_effective_ranks_are_those_of_the_explicit_stacks():
    found = EFFECTIVE_RANKS(stacked(MIXED))
    pairs = [pair for pair in MIXED if pair is not None]
    updates = [(b @ a).ravel() for b, a in pairs]
    directions = [
        [np.outer(b[:, j], a[j]).ravel() for j in range(b.shape[1])] for b, a in pairs
    ]
    tasks = [entropy_rank(np.linalg.svd(b @ a, compute_uv=False)) for b, a in pairs]
    own = [entropy_rank(values_of(rows)) for rows in directions]
    CLOSE(found.tasks, np.insert(tasks, 2, 0))
    CLOSE(found.own_directions, np.insert(own, 2, 0))
    CLOSE(found.updates, entropy_rank(values_of(updates)))
    CLOSE(found.directions, entropy_rank(values_of(np.concatenate(directions))))


def test_copies_of_an_adapter_span_what_it_spans():
    (one,) = random_pairs([3])
    alone, twice = (EFFECTIVE_RANKS(stacked([one] * t)) for t in (1, 2))
    CLOSE(twice.updates, 1.0)
    CLOSE(twice.directions, alone.directions)
    CLOSE(alone.directions, alone.own_directions[0])


def test_overlaps_are_those_of_explicit_projections():
    found = OVERLAPS(stacked(MIXED))
    for side, values, random, size in (
        (0, found.b, found.random_b, 7),
        (1, found.a, found.random_a, 6),
    ):
        for i, first in enumerate(MIXED):
            for j, second in enumerate(MIXED):
                if first is None or second is None:
                    assert values[i, j] == random[i, j] == 0
                    continue
                x, y = (p[0] if side == 0 else p[1].T for p in (first, second))
                onto_x, onto_y = x @ np.linalg.pinv(x), y @ np.linalg.pinv(y)
                ranks = x.shape[1], y.shape[1]
                CLOSE(values[i, j], np.trace(onto_x @ onto_y) / min(ranks))
                CLOSE(random[i, j], max(ranks) / size)


def test_random_subspaces_overlap_as_expected():
    """The mean over 400 draws is within 5 standard errors of the formula."""
    stacks = {
        f"{seed}": stacked(random_pairs([3, 2], m=20, n=30, seed=seed))
        for seed in range(400)
    }
    found = jm.map_modules(diagnostics.overlaps, stacks).values()
    for values, expected in (
        ([float(x.b[0, 1]) for x in found], 3 / 20),
        ([float(x.a[0, 1]) for x in found], 3 / 30),
    ):
        error = np.std(values) / np.sqrt(len(values))
        assert abs(np.mean(values) - expected) < 5 * error
    CLOSE([x.random_b[0, 1] for x in found], 3 / 20)


def test_crowding_is_the_spectrum_of_all_b_before_and_after():
    stack = stacked(MIXED)
    b = np.hstack([pair[0] for pair in MIXED if pair is not None])
    u, s, _ = np.linalg.svd(b, full_matrices=False)
    found = CROWDING(stack)
    CLOSE(found.values, s)
    CLOSE(found.norm, np.linalg.norm(b))
    CLOSE(found.effective_rank, entropy_rank(s))
    CLOSE(found.stable_rank, np.sum(s**2) / s[0] ** 2)
    CLOSE(found.condition, s[0] / s[-1])
    share = s**2 / np.sum(s**2)
    CLOSE(diagnostics.sharing_scores(stack), share)
    shrink = u @ np.diag(1 / (1 + 2 * share)) @ u.T  # three tasks are present
    after = CROWDING(jm.calibrate(stack))
    CLOSE(after.values, np.linalg.svd(shrink @ b, compute_uv=False))
    assert after.effective_rank > found.effective_rank
    assert after.condition < found.condition
    shared = OVERLAPS(stack).b
    CLOSE(found.largest_overlap, np.max(shared - np.diag(np.diag(shared))))


@pytest.mark.parametrize("entries", [1, 100, 1 << 18])
def test_sign_conflicts_are_counted_entry_by_entry(entries):
    pairs = [*MIXED, (np.eye(7)[:, :1], np.eye(6)[:1])]  # with zeros nearly everywhere
    found = diagnostics.sign_conflict(stacked(pairs), entries=entries)
    updates = [np.zeros((7, 6)) if p is None else p[0] @ p[1] for p in pairs]
    for i, x in enumerate(updates):
        for j, y in enumerate(updates):
            both = (x != 0) & (y != 0)
            share = np.mean((x * y < 0)[both]) if both.any() else 0
            CLOSE(found.pairs[i, j], share)
    signs = np.sign(updates)
    several = np.sum(signs != 0, axis=0) > 1
    mixed = (signs.max(0) > 0) & (signs.min(0) < 0)
    CLOSE(found.anywhere, np.mean(mixed[several]))


def test_cosines_norm_ratio_and_energy_are_those_of_dense_updates():
    stack = stacked(MIXED)
    updates = [p[0] @ p[1] for p in MIXED if p is not None]
    sizes = [np.linalg.norm(u) for u in updates]
    cosines = diagnostics.task_cosines(stack)
    CLOSE(cosines[0, 3], np.sum(updates[0] * updates[2]) / (sizes[0] * sizes[2]))
    assert cosines[2].tolist() == [0, 0, 0, 0]
    total = np.sum(updates, axis=0)
    expected = np.linalg.norm(total) / np.mean(sizes)
    CLOSE(diagnostics.norm_ratio(stack, jm.concat(stack)), expected)
    CLOSE(diagnostics.norm_ratio(stack, jnp.asarray(total)), expected)
    CLOSE(diagnostics.norm_ratio(stack, jm.pico(jm.concat)(stack)), 1.0)
    found = DIAGNOSE(stack)
    for rank, kept in enumerate(found.energy, start=1):
        truncated = jm.dense(jm.truncate(jnp.asarray(total), rank=rank))
        lost = np.linalg.norm(total - np.asarray(truncated)) ** 2
        CLOSE(kept, 1 - lost / np.linalg.norm(total) ** 2)
    CLOSE(found.task_energy[:, -1], 1)
    CLOSE(found.norms, task_norms(stack))
    CLOSE(found.sum_norm, np.linalg.norm(total))


# --- laws --------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "dtype"), in_turn([*degenerate()], [jnp.float32, jnp.float64])
)
def test_every_number_is_finite_and_in_its_range(name, dtype):
    stack = jm.stack_adapters(degenerate()[name], dtype=dtype)
    found = DIAGNOSE(stack)
    for leaf in jax.tree.leaves(found):
        assert leaf.dtype == dtype
        assert np.isfinite(leaf).all()
    slack = 100 * float(jnp.finfo(dtype).eps)
    for share in (*found.overlaps, *found.signs, found.energy, found.task_energy):
        assert np.all((share >= -slack) & (share <= 1 + slack))
    tasks, width = len(stack.ranks), sum(stack.ranks)
    assert found.ranks.updates <= tasks + slack
    assert found.ranks.directions <= width + slack
    assert np.isfinite(SHARING_SCORES(stack)).all()


def test_zero_adapters_have_rank_and_overlap_zero():
    found = DIAGNOSE(stacked(degenerate()["zero beside another"]))
    assert found.ranks.tasks[0] == 0
    assert found.overlaps.b[0, 1] == 0
    assert found.signs.pairs[0, 1] == 0
    assert found.norm_ratio == pytest.approx(2.0)  # the sum is one of two updates
    nothing = DIAGNOSE(stacked(degenerate()["all zero"]))
    assert nothing.ranks.directions == nothing.norm_ratio == nothing.before.norm == 0
    assert nothing.before.condition == 0
    assert nothing.energy.tolist() == [1.0] * 4


def test_duplicates_overlap_fully_and_opposites_conflict_everywhere():
    found = DIAGNOSE(stacked(degenerate()["duplicates"]))
    CLOSE(found.overlaps.b, np.ones((3, 3)))
    CLOSE(found.overlaps.a, np.ones((3, 3)))
    CLOSE(found.norm_ratio, 3)
    assert not found.signs.pairs.any()
    found = DIAGNOSE(stacked(degenerate()["opposites"]))
    assert found.signs.pairs.tolist() == [[0, 1], [1, 0]]
    assert found.signs.anywhere == 1
    CLOSE(found.cosines[0, 1], -1)
    assert found.norm_ratio < 1e-7  # the root of what rounding leaves of a difference


def test_the_gauge_changes_only_what_says_so():
    rng = np.random.default_rng(3)
    pairs, other = random_pairs([3, 2]), []
    for b, a in pairs:
        change = rng.standard_normal((b.shape[1], b.shape[1]))
        other.append((b @ change, np.linalg.solve(change, a)))
    before, after = (DIAGNOSE(stacked(x)) for x in (pairs, other))
    for name in ("norms", "norm_ratio", "overlaps", "signs", "cosines", "energy"):
        jax.tree.map(CLOSE, getattr(after, name), getattr(before, name))
    CLOSE(after.ranks.tasks, before.ranks.tasks)
    CLOSE(after.ranks.updates, before.ranks.updates)
    assert abs(after.ranks.directions - before.ranks.directions) > 1e-3
    assert abs(after.before.effective_rank - before.before.effective_rank) > 1e-3
    canonical = [jm.balance(stacked(x)) for x in (pairs, other)]
    crowded = [CROWDING(stack) for stack in canonical]
    jax.tree.map(CLOSE, crowded[1], crowded[0])
    ranks = [EFFECTIVE_RANKS(stack) for stack in canonical]
    jax.tree.map(CLOSE, ranks[1], ranks[0])


@pytest.mark.thorough
def test_order_and_padding_of_tasks_change_nothing():
    pairs = random_pairs([3, 1, 2])
    found = DIAGNOSE(stacked(pairs))
    turned = DIAGNOSE(stacked(pairs[::-1]))
    CLOSE(turned.overlaps.b, found.overlaps.b[::-1, ::-1])
    CLOSE(turned.signs.pairs, found.signs.pairs[::-1, ::-1])
    CLOSE(turned.ranks.directions, found.ranks.directions)
    CLOSE(turned.after.values, found.after.values)
    alone = OVERLAPS(stacked(pairs[1:]))
    CLOSE(alone.a, found.overlaps.a[1:, 1:])


def test_overlap_above_random():
    overlap, random = jnp.asarray([0.1, 1.0, 1.0]), jnp.asarray([0.1, 0.1, 1.0])
    CLOSE(diagnostics.above_random(overlap, random), [0, 1, 0])


def test_the_condition_of_crowded_outputs_leaves_out_what_is_noise():
    def crowding(*columns):
        pairs = [(np.array(b)[:, None], np.ones((1, 2))) for b in columns]
        return CROWDING(jm.stack_adapters(pairs)).condition

    found = crowding([4.0, 0, 0], [0, 2.0, 0], [0, 2.0, 0])
    assert found == pytest.approx(2**0.5, rel=1e-6)
    assert crowding([0.0, 0, 0], [0, 0, 0]) == 0


@pytest.mark.thorough
def test_a_model_is_diagnosed_by_programs_of_one_shape():
    """What tall and wide modules share is compiled once, and for any number of them."""
    shapes = {"q": (40, 30), "v": (50, 60)}
    stacks = {
        name: stacked(random_pairs([3, 1, 2], m=m, n=n, seed=m))
        for name, (m, n) in shapes.items()
    }
    found = diagnose_each(stacks)
    for name, stack in stacks.items():
        expected = DIAGNOSE(stack)
        jax.tree.map(CLOSE, found[name], jax.tree.map(np.asarray, expected))
        signs = diagnostics.sign_conflict(stack)
        direct = jax.jit(diagnose_within)(stack, signs, *shapes[name])
        jax.tree.map(CLOSE, found[name], jax.tree.map(np.asarray, direct))
    programs = module._diagnose_within._cache_size()
    calls = []
    diagnose_each(
        {f"{layer}.q": stacks["q"] for layer in range(3)},
        report=lambda: calls.append(0),
    )
    assert len(calls) == 3
    assert module._diagnose_within._cache_size() == programs
