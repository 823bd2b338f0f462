"""CtM: bases that hold as much as any, and the rank that was asked for."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from methods import distance, random_stack, task_updates
from tiers import in_turn

import jaxmerge as jm
from jaxmerge.mergers.ctm import project_compressed, tucker_bases

RANKS, M, N = (2, 4, 3), 13, 11
ties = partial(jm.ties, density=0.3)


def compiled(merger):
    return jax.jit(lambda stack: jm.dense(merger(stack)))


def held(matrices, u, v):
    return sum(np.linalg.norm(u.T @ x @ v) ** 2 for x in np.asarray(matrices))


def alternating(matrices, u, rounds):
    """Another HOOI, through eigenvectors of Gram matrices, from a given U."""
    for _ in range(rounds):
        v = np.linalg.eigh(sum(x.T @ u @ u.T @ x for x in matrices))[1][
            :, -u.shape[1] :
        ]
        u = np.linalg.eigh(sum(x @ v @ v.T @ x.T for x in matrices))[1][
            :, -v.shape[1] :
        ]
    return u, v


@pytest.mark.thorough
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_bases_hold_what_another_solver_holds(rank):
    matrices = np.random.default_rng(3).normal(size=(4, 8, 7))
    u, v = (np.asarray(x) for x in tucker_bases(matrices, rank=rank, iterations=200))
    assert distance(u.T @ u, np.eye(rank)) < 1e-10
    assert distance(v.T @ v, np.eye(rank)) < 1e-10
    start = np.linalg.svd(np.concatenate(matrices, axis=1))[0][:, :rank]
    best = held(matrices, *alternating(matrices, start, 2000))
    assert held(matrices, u, v) == pytest.approx(best, rel=1e-6)
    energies = [
        held(
            matrices, *map(np.asarray, tucker_bases(matrices, rank=rank, iterations=i))
        )
        for i in (0, 1, 3, 10, 30)
    ]
    assert np.all(np.diff(energies) > -1e-10 * best)
    assert energies[-1] > 0.999 * best


def test_one_adapter_is_truncated_as_well_as_can_be():
    stack = random_stack((4,), M, N)
    for rank in (1, 3, 4, 9):
        merged = jm.ctm(jm.total, rank=rank)(stack)
        best = jm.truncate(jm.concat(stack), rank=min(rank, 4))
        assert distance(jm.dense(merged), jm.dense(best)) < 1e-9
        assert merged.b.shape == (M, min(rank, 4))


@pytest.mark.parametrize(
    ("rank", "rule"), in_turn([1, 3, 9, 50], [jm.total, ties, jm.tsv])
)
def test_rank_of_the_result(rule, rank):
    stack = random_stack(RANKS, M, N)
    merged = jax.jit(jm.ctm(rule, rank=rank))(stack)
    assert merged.b.shape[1] == merged.a.shape[0] == min(rank, sum(RANKS))
    assert np.all(np.isfinite(jm.dense(merged)))
    if rank >= sum(RANKS) and rule is jm.total:  # nothing is lost
        assert distance(jm.dense(merged), jm.dense(jm.concat(stack))) < 1e-9


def test_coordinates_are_of_the_updates_themselves():
    stack = random_stack(RANKS, M, N)
    updates = np.asarray(task_updates(stack))
    for beta in (0.0, 0.25, 1.0):
        cores, basis = project_compressed(stack, rank=3, beta=beta)
        for core, update in zip(cores, updates, strict=True):
            assert distance(core, basis.b.T @ update @ basis.a.T) < 1e-10


def test_equal_norms_give_a_small_adapter_its_share():
    """With beta = 0 a task's scale does not move the bases, with beta = 1 it does."""
    stack = random_stack((3, 3), M, N)
    small = stack.replace(b=stack.b * jnp.array([1.0, 0.05])[:, None, None])
    kept = {}
    for beta in (0.0, 1.0):
        _, basis = project_compressed(small, rank=3, beta=beta)
        update = np.asarray(task_updates(small))[1]
        projected = basis.b @ (basis.b.T @ update @ basis.a.T) @ basis.a
        kept[beta] = np.linalg.norm(projected) / np.linalg.norm(update)
        _, same = project_compressed(stack, rank=3, beta=beta)
        moved = distance(basis.b @ basis.b.T, same.b @ same.b.T)
        assert (moved < 1e-8) == (beta == 0.0)
    assert kept[0.0] > 2 * kept[1.0]


def test_an_entrywise_rule_sees_the_updates_alone():
    """Unlike in core space: the last decomposition fixes the bases up to signs."""
    stack = random_stack((3, 3, 3), M, N)
    turns = np.random.default_rng(1).normal(size=(3, 3, 3)) + 3 * np.eye(3)
    other = stack.replace(
        b=stack.b @ turns, a=jnp.asarray(np.linalg.solve(turns, np.asarray(stack.a)))
    )
    order = jnp.array([2, 0, 1])
    moved = stack.replace(a=stack.a[order], b=stack.b[order])
    merge = compiled(jm.ctm(ties, rank=4))
    for same in (other, moved):
        assert distance(merge(same), merge(stack)) < 1e-8
    in_core = compiled(jm.core_space(ties))
    assert distance(in_core(other), in_core(stack)) > 1e-2


def test_zero_adapters_and_ranks_of_no_sense():
    stack = random_stack((3, 3, 3), M, N)
    merge = compiled(jm.ctm(ties, rank=2))
    zero = stack.replace(b=stack.b.at[1].set(0))
    assert np.all(np.isfinite(merge(zero)))
    nothing = stack.replace(b=stack.b * 0)
    assert np.all(np.asarray(merge(nothing)) == 0)
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        jm.ctm(ties, rank=0)(stack)
