"""TSV-M and CART in every space, against three official codes.

The official TSV-M takes ``int(min(p, q) / T)`` directions of every task, null vectors
included. Where that is at most every rank the result is unique, and ours; elsewhere it
depends on the SVD routine, and ours takes the directions that exist.
"""

import math
from functools import cache, partial

import conditioning
import jax
import numpy as np
import pytest
from golden import assert_close, official_directions, official_shape
from oracle import oracle

import jaxmerge as jm
from jaxmerge.linalg import polar

TSV = ("core.*/tsv", "tara.TSVM", "fusion.tsvm", "fusion.tsvm_eigen")


@oracle(*TSV, where=lambda entry: entry.status == "unique")
def test_tsv(entry):
    by = entry.get("scaling_coeffs", entry.get("scaling_factor", 1.0))

    def moves(module):
        matrices, _ = entry.coordinates(entry.space)[module]
        most = official_directions(entry, matrices)
        ranks = [min(rank, most) for rank in entry.case.ranks]
        return by * conditioning.tsv(entry.space, entry.stacks()[module], ranks=ranks)

    for dtype in entry.dtypes:
        merged = entry.merge_in(entry.space, jm.tsv, dtype, by=by)
        entry.check(merged, dtype, moves=moves)
    if entry.space is jm.full:
        entry.check(entry.merge(jm.tsv_m))
    for name in sorted(entry.unread):  # what single tasks add
        _, task, module = name.split("/")
        update = jm.tsv_m(entry.stacks()[module])
        count = update.b.shape[1] // entry.case.tasks
        part = slice(int(task) * count, (int(task) + 1) * count)
        added = update.b[:, part] @ update.a[part]
        assert_close(added, entry.read(name), entry.tolerance(), entry.id)


@oracle("core.core/tsv", where=lambda entry: entry.status == "few-entries")
def test_tsv_of_nearly_dependent_adapters(entry):
    """As the set suggests: all but 0.5 % of the entries within 1e-4 max |dW|."""
    merged = entry.merge_in(jm.core, jm.tsv)
    for module, official in entry.by_module("dW").items():
        off = np.abs(merged[module] - official) > 1e-4 * np.max(np.abs(official))
        assert np.mean(off) <= 0.005


@oracle(*TSV, where=lambda entry: entry.status == "not-unique")
def test_tsv_takes_only_directions_that_exist(entry):
    """The official result is arbitrary here, for the reason that we assert.

    It takes more directions than some task has. Ours has at most K directions, stays
    in the span of the adapters, and is that of core space in full space.
    """
    merged = entry.merge_in(entry.space, jm.tsv)
    factored = entry.merge(jm.tsv_m)
    more_than_exist = []
    for module, stack in entry.stacks().items():
        matrices = np.asarray(entry.coordinates(entry.space)[module][0])
        ranks = np.linalg.matrix_rank(matrices, tol=1e-9)
        more_than_exist.append(official_directions(entry, matrices) > min(ranks))
        update = merged[module]
        assert np.linalg.matrix_rank(update, tol=1e-9) <= sum(ranks)
        span, _ = np.linalg.qr(np.concatenate(np.asarray(stack.b), axis=1))
        assert_close(span @ (span.T @ update), update, 1e-9, entry.id)
        if entry.space is not jm.knots_unscaled:
            assert_close(update, factored[module], 1e-9, entry.id)
    assert any(more_than_exist)


def test_tsv_of_more_tasks_than_directions():
    """The official ``int(min(p, q) / T)`` is 0, and so is its merge."""
    pairs = [(np.eye(3)[:, t % 3, None], np.eye(9)[t, None]) for t in range(5)]
    stack = jm.stack_adapters(pairs, dtype=np.float64)
    assert int(min(3, 9) / 5) == 0
    merged = jm.tsv_m(stack)
    assert merged.b.shape[1] == 5
    # rows 0 and 1 have two tasks each, whose directions share a norm of 1
    expected = sum(b @ a for b, a in pairs) / np.sqrt([[2], [2], [1]])
    assert_close(jm.dense(merged), expected, 1e-12)


@pytest.mark.parametrize("fraction", [-0.1, 0.0, 1.5, math.nan])
def test_cart_refuses_what_is_no_share(fraction):
    with pytest.raises(ValueError, match="rank_fraction must be in"):
        jm.cart(np.ones((2, 3, 3)), rank_fraction=fraction)


@oracle("core.*/tsv_components")
def test_singular_values_that_tsv_selects(entry):
    """And the polar factors, on the very vectors that the official code built."""
    for module, (matrices, _) in entry.coordinates(entry.space).items():
        official = entry.read(f"S_selected/{module}")
        assert official.shape[1] == official_directions(entry, matrices)
        values = np.linalg.svd(np.asarray(matrices), compute_uv=False)
        values = values[:, : official.shape[1]]
        assert_close(values, official, 5e-6, entry.id)
        if "sum_u" in entry.quantities:
            vectors = [
                entry.read(f"{name}/{module}").astype(np.float64)
                for name in ("sum_u", "sum_v")
            ]
            u, vt = (np.asarray(polar(x)) for x in vectors)
            s = np.zeros(u.shape[1])
            s[: values.size] = values.reshape(-1)
            rebuilt = entry.read(f"dW_given_sum_usv/{module}")
            assert_close(u * s @ vt, rebuilt, 5e-6, entry.id)


@cache
def cart(fraction: float):
    def rule(matrices, *, deviations, **extra):
        return jm.cart(matrices, rank_fraction=fraction, by=deviations, **extra)

    return rule


@oracle("core.*/cart_*")
def test_cart(entry):
    """The rank is a share of the size of the space.

    The official KnOTS space has no null directions, ours has a static size: there the
    share is converted.
    """
    fraction, by = entry["cart_pruning_rank"], entry["cart_scaling_coeffs"]
    if entry.case.name == "e_deficient":
        ((matrices, _),) = entry.coordinates(entry.space).values()
        rank = math.ceil(fraction * min(official_shape(entry, matrices)))
        fraction = rank / min(matrices.shape[1:])

    def moves(module):
        matrices, _ = entry.coordinates(entry.space)[module]
        rank = math.ceil(fraction * min(matrices.shape[1:]))
        stack = entry.stacks()[module]
        moved = conditioning.cart(entry.space, stack, rank=rank, by=by)
        return entry["scaling_coeffs"] * moved

    for dtype in entry.dtypes:
        merged = entry.merge_in(
            entry.space,
            cart(fraction),
            dtype,
            by=entry["scaling_coeffs"],
            deviations=by,
        )
        entry.check(merged, dtype, moves=moves)


@oracle("fusion.tsvm_lowrank")
def test_sum_of_truncated_updates(entry):
    """``int(min(m, n) / T)`` directions of each task, added without polar factors."""

    def rank_of(stack):
        return int(min(stack.b.shape[1], stack.a.shape[2]) / entry.case.tasks)

    def moves(module):
        stack = entry.stacks()[module]
        rank = rank_of(stack)
        updates = np.matmul(stack.b, stack.a)
        return np.linalg.norm([conditioning.truncation(x, rank) for x in updates])

    for dtype in entry.dtypes:
        merged = {
            module: sum_of_truncated(stack, rank_of(stack))
            for module, stack in entry.stacks(dtype).items()
        }
        entry.check(merged, dtype, moves=moves)


@partial(jax.jit, static_argnums=1)
def sum_of_truncated(stack, rank):
    updates = map(jm.LowRank, stack.b, stack.a)
    return sum(jm.dense(jm.truncate(update, rank=rank)) for update in updates)


@oracle("fusion.tsvm_lossless", where=lambda entry: entry.has_dw)
def test_lossless_tsv_of_square_matrices_is_their_mean(entry):
    """Every factor is then a complete basis, and the polar factors average them."""
    for dtype in entry.dtypes:
        entry.check(entry.merge(jm.average, dtype), dtype)


@oracle("fusion.tsvm_lossless", where=lambda entry: not entry.has_dw)
def test_no_lossless_tsv(entry):
    """It takes all ``min(m, n)`` directions of tasks that have fewer: not unique.

    All the directions that tasks have is what `tsv_m` takes if they fit.
    """
    assert entry.status == "not-unique"
    for stack in entry.stacks().values():
        size = min(stack.b.shape[1], stack.a.shape[2])
        assert max(stack.ranks) < size
        directions = jax.eval_shape(jm.tsv_m, stack).b.shape[1]
        assert (directions == sum(stack.ranks)) == (sum(stack.ranks) <= size)


@oracle("fusion.tsvm/interference_probe")
def test_probe_of_rectangular_matrices(entry):
    """A measure of interference that raises for m != n; nothing of ours needs m = n."""
    assert "cannot be multiplied" in entry.raises
    for module, update in entry.merge(jm.tsv_m).items():
        assert update.shape[0] != update.shape[1], module
        assert np.all(np.isfinite(update))
