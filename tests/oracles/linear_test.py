"""Sums and means of updates: every official spelling is `concat` or `average`."""

from functools import cache, partial

import conditioning
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import assert_close
from oracle import oracle

import jaxmerge as jm


@oracle("core.*/sum", "core.*/mean")
def test_sum_and_mean_in_every_space_of_the_core_space_code(entry):
    rule = {"sum": jm.total, "mean": jm.mean}[entry["merge_method"]]
    by = entry["scaling_coeffs"]
    for dtype in entry.dtypes:
        merged = entry.merge_in(entry.space, rule, dtype, by=by)
        entry.check(merged, dtype)


@oracle(
    "core.vector/tv_*", "knots.vector/tv_*", "knots.svd/tv_sum_topK100", "tara.TA/*"
)
def test_task_arithmetic(entry):
    merger = {"sum": jm.concat, "mean": jm.average}[entry["merging_type"]]
    by = np.ravel(entry.get("scaling_factor", entry.get("scaling_coeffs")))[0]
    for dtype in entry.dtypes:
        entry.check(entry.merge(merger, dtype, by=by), dtype)


@oracle("tara.SVD/sum")
def test_sum_in_knots_space_is_the_sum(entry):
    by = entry["scaling_factor"]
    for dtype in entry.dtypes:
        entry.check(entry.merge_in(jm.knots, jm.total, dtype, by=by), dtype)


@oracle(
    "peft.fn.task_arithmetic/mix",
    "mergekit.gta/task_arithmetic",
    "mergekit.gta/ta_normalize",
    "fusion.taskwise",
)
def test_weighted_sum(entry):
    """mergekit's ``normalize`` without consensus divides by the sum of the weights."""
    if entry.family == "fusion.taskwise":
        weights = entry.read("weights")
    else:
        weights = np.asarray(entry.get("weights", entry.get("w")))
    if entry.get("normalize"):
        weights = weights / np.sum(weights)
    for dtype in entry.dtypes:
        entry.check(entry.merge(jm.concat, dtype, weights=weights), dtype)


@oracle("peft.awa.cat/mix")
def test_concat_is_the_cat_of_peft(entry):
    """PEFT folds the weights and lora_alpha / r into A, ours go into b."""
    weights = np.asarray(entry["weights"])
    for dtype in entry.dtypes:
        merged = entry.merge(jm.task_arithmetic, dtype, scaled=True, weights=weights)
        entry.check(merged, dtype)


@oracle("peft.awa.svd/*", where=lambda entry: entry.has_dw)
def test_truncate_is_the_svd_of_peft(entry):
    rank = entry["svd_rank"] or max(entry.case.ranks)
    weights = np.asarray(entry["weights"])

    def moves(module):
        stack = entry.stacks(scaled=True)[module]
        whole = np.einsum("t,tmr,trn->mn", weights, stack.b, stack.a)
        return conditioning.truncation(whole, rank)

    for dtype in entry.dtypes:
        merged = entry.merge(truncated(rank), dtype, scaled=True, weights=weights)
        entry.check(merged, dtype, moves=moves)


@cache
def truncated(rank: int):
    return jm.then(jm.concat, partial(jm.truncate, rank=rank))


@oracle("peft.awa.svd/clamp")
def test_no_clamp_of_singular_vectors(entry):
    """PEFT's ``svd_clamp`` is not offered: it depends on the signs of the vectors.

    It bounds the entries of ``U S`` and ``V^T`` by a signed quantile, so the official
    result changes when a pair of vectors changes sign. Ours is the best approximation
    of that rank, whatever the signs.
    """
    assert entry.status == "not-unique"
    assert entry["svd_clamp"] < 1
    rank = entry["svd_rank"]
    for name, update in entry.merge(truncated(rank), scaled=True).items():
        stack = entry.stacks(scaled=True)[name]
        u, s, vt = np.linalg.svd(sum(np.matmul(stack.b, stack.a)))
        best = (u[:, :rank] * s[:rank]) @ vt[:rank]
        assert_close(update, best, 1e-9, entry.id)


@oracle("fusion.layerwise/*")
def test_layer_wise_weights_and_their_gradient(entry):
    """Weights of every task and module, and the gradient of ``sum(dW^2)`` in them."""

    def merge(raw, stacks):
        if entry["normalized_merging_weights"]:
            raw = jax.nn.softmax(raw, axis=0)
        if entry["clamp_weights"]:
            raw = jnp.clip(raw, 0, 1)
        return {
            name: jm.concat(stack, weights=raw[:, module])
            for module, (name, stack) in enumerate(stacks.items())
        }

    def energy(raw, stacks):
        updates = merge(raw, stacks)
        dense = {name: jm.dense(update) for name, update in updates.items()}
        return sum(jm.norm(update) ** 2 for update in updates.values()), dense

    run = jax.jit(jax.grad(energy, has_aux=True))
    given = entry.read("weights")
    for dtype in entry.dtypes:
        gradient, updates = run(jnp.asarray(given, dtype), entry.stacks(dtype))
        entry.check(updates, dtype)
        wanted = entry.tolerance(np.float32)
        assert_close(gradient, entry.read("grad_sumsq"), wanted, entry.id)


def add_factors(stack, **extra):
    return jm.LowRank(b=jm.total(stack.b), a=jm.total(stack.a))


@oracle("tara.Linear/*", where=lambda entry: not entry.raises)
def test_product_of_summed_factors(entry):
    """``(sum B)(sum A)``, divided once by T for the mean: a rule on each factor."""
    by = entry.get("scaling_factor", 1.0)
    if entry["merging_type"] == "mean":
        by = by / entry.case.tasks
    for dtype in entry.dtypes:
        entry.check(entry.merge(add_factors, dtype, by=by), dtype)


@oracle("tara.Linear/*", where=lambda entry: entry.raises)
def test_product_of_summed_factors_of_mixed_ranks(entry):
    """Padding makes the sum of factors possible, if not meaningful."""
    assert len(set(entry.case.ranks)) > 1
    for update in entry.merge(add_factors).values():
        assert np.all(np.isfinite(update))


def test_cross_terms_are_not_task_arithmetic():
    """Why the sum of factors has no name of its own: orthogonal tasks disturb it."""
    eye = np.eye(3)
    stack = jm.stack_adapters([(eye[:, :1], eye[:1]), (eye[:, 1:2], eye[1:2])])
    cross = jm.dense(add_factors(stack)) - jm.dense(jm.concat(stack))
    assert np.linalg.norm(cross) == pytest.approx(np.sqrt(2))
