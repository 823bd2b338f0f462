"""TIES as PEFT, mergekit, FusionBench, KnOTS and TARA define it, in full space.

The definitions are those of docs/ties.md, run from the page itself.
"""

from functools import cache, partial

import conditioning
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from documented import code_of
from golden import assert_close, truncated
from oracle import oracle

import jaxmerge as jm

ties = code_of("ties.md")
COMBINE = {
    "mean": jm.mean_of_agreeing,
    "sum": jm.sum_of_agreeing,
    "max": jm.largest_of_agreeing,
}
SIGN = {
    "total": ties.plus_at_zero,
    "sum": ties.plus_at_zero,
    "frequency": jm.sign_of_count,
    "count": jm.sign_of_count,
}
run_whole_model = jax.jit(ties.knots, static_argnames=("space", "rule"))
run_fusion_bench = jax.jit(ties.fusion_bench, static_argnames="rule")


@cache
def rule(definition, **options):
    """One function for each set of options, so that it is compiled once."""
    return partial(definition, **options)


def size_of(stacks) -> int:
    return sum(s.b.shape[1] * s.a.shape[2] for s in stacks.values())


def exactly(density, shape) -> dict:
    """int(density * size) entries, as PEFT and mergekit keep."""
    size = shape[1] * shape[2]
    return {"density": ties.keeping(int(density * size), size)}


def dense(updates):
    return {name: jm.dense(update) for name, update in updates.items()}


@oracle("peft.fn.ties/*")
def test_peft(entry):
    sign = SIGN[entry["majority_sign_method"]]
    for dtype in entry.dtypes:
        merged = entry.merge_in(
            jm.full,
            rule(ties.peft, sign=sign),
            dtype,
            weights=np.asarray(entry["weights"], dtype),
            each=partial(exactly, entry["density"]),
        )
        entry.check(merged, dtype)


@oracle("peft.awa.ties_svd/*")
def test_peft_ties_svd(entry):
    sign, rank = SIGN[entry["majority_sign_method"]], max(entry.case.ranks)
    merged = {
        dtype: entry.merge_in(
            jm.full,
            rule(ties.peft, sign=sign),
            dtype,
            scaled=True,
            weights=np.asarray(entry["weights"], dtype),
            each=partial(exactly, entry["density"]),
        )
        for dtype in entry.dtypes
    }
    for dtype, updates in merged.items():
        entry.check(
            {name: truncated(update, rank) for name, update in updates.items()},
            dtype,
            moves=lambda name: conditioning.truncation(merged[np.float64][name], rank),
        )


@oracle("mergekit.gta/ties_*", where=lambda entry: not entry["rescale"])
def test_mergekit(entry):
    options = {"sign": SIGN[entry["consensus"]], "normalize": entry["normalize"]}
    for dtype in entry.dtypes:
        merged = entry.merge_in(
            jm.full,
            rule(ties.mergekit, **options),
            dtype,
            by=entry["lam"],
            weights=np.asarray(entry["w"], dtype),
            each=partial(exactly, entry["density"]),
        )
        entry.check(merged, dtype)


@oracle("tara.Ties/*")
def test_tara(entry):
    combine = COMBINE[entry["merging_type"]]
    for dtype in entry.dtypes:
        merged = entry.merge_in(
            jm.full,
            rule(ties.tara, combine=combine),
            dtype,
            by=entry["scaling_factor"],
            each=lambda shape: {
                "density": ties.rounded(entry["topK"], shape[1] * shape[2])
            },
        )
        entry.check(merged, dtype)


@oracle(
    "core.vector/ties_*", "knots.vector/ties_*", where=lambda entry: not entry.raises
)
def test_whole_model(entry):
    percent = entry["topK"] if entry["topK"] > 1 else 100 * entry["topK"]
    combine = COMBINE[entry["merging_type"]]
    for dtype in entry.dtypes:
        stacks = entry.stacks(dtype)
        merged = run_whole_model(
            stacks,
            density=ties.one_more(percent, size_of(stacks)),
            weight=float(np.ravel(entry["scaling_coeffs"])[0]),
            space=jm.full,
            rule=rule(jm.elect, combine=combine),
        )
        entry.check(dense(merged), dtype)


@oracle("core.vector/ties_*", where=lambda entry: entry.raises)
def test_whole_model_of_two_modules(entry):
    """The official code mistakes a model of two modules for a pair; ours merges it."""
    assert len(entry.modules) == 2
    stacks = entry.stacks()
    merged = run_whole_model(
        stacks,
        density=ties.one_more(entry["topK"], size_of(stacks)),
        space=jm.full,
        rule=rule(jm.elect, combine=COMBINE[entry["merging_type"]]),
    )
    kept = sum(np.count_nonzero(update) for update in merged.values())
    assert 0 < kept <= entry.case.tasks * (entry["topK"] / 100 * size_of(stacks) + 1)
    assert all(np.all(np.isfinite(update)) for update in merged.values())


@oracle("fusion.ties/*", where=lambda entry: not entry.raises)
def test_fusion_bench(entry):
    threshold = entry["reset_thresh"]
    percent = threshold if threshold > 1 else 100 * threshold
    combine = COMBINE[entry["merge_func"].removeprefix("dis-")]
    for dtype in entry.dtypes:
        stacks = entry.stacks(dtype)
        merged = run_fusion_bench(
            stacks,
            density=ties.one_more(percent, size_of(stacks)),
            scaling=1.0,
            rule=rule(jm.elect, combine=combine),
        )
        entry.check(dense(merged), dtype)


@oracle("fusion.ties/*", where=lambda entry: entry.raises)
def test_fusion_bench_without_trimming(entry):
    """The official code cannot keep everything; a density of 1 trims nothing."""
    assert entry["reset_thresh"] == 100
    stacks = entry.stacks()
    kept = run_fusion_bench(stacks, density=1.0, scaling=1.0, rule=ties.disjoint_sum)
    for name, stack in stacks.items():
        untrimmed = jm.full_space(ties.disjoint_sum)(stack)
        assert_close(kept[name], untrimmed, 1e-12, entry.id)


def test_example_values_of_the_definitions():
    """Three tasks, one entry: what each tool makes of 4, -1 and -2 with weights."""
    values, weights = jnp.array([[[4.0]], [[-1.0]], [[-2.0]]]), jnp.array([0.5, 2.0, 1])
    assert float(ties.peft(values, weights=weights, density=1.0)[0, 0]) == 2.0
    assert float(ties.mergekit(values, weights=weights, density=1.0)[0, 0]) == -4 / 3
    assert float(ties.tara(values, density=1.0)[0, 0]) == -3.0
    assert float(jm.ties(values, density=1.0)[0, 0]) == 4.0


def test_no_sign_at_all():
    """Entries that cancel, and a majority that does too: nothing agrees.

    The official codes take the negative values there, so changing the sign of all
    adapters changes more than the sign of the result.
    """
    cancelling = jnp.array([[[1.0, 3.0, -3.0]], [[-1.0, 1.0, -1.0]]])
    merged = jm.ties(cancelling, density=1.0)
    assert np.array_equal(merged, [[0.0, 2.0, -2.0]])
    assert np.array_equal(jm.ties(-cancelling, density=1.0), -merged)


@pytest.mark.parametrize("density", [0.29, 0.57, 0.58])
def test_shares_of_whole_numbers(density):
    """The tools cut the product off, which is just below the number that is meant."""
    matrices = jnp.asarray(np.random.default_rng(0).normal(size=(1, 10, 10)))
    cut_off = int(density * 100)
    assert cut_off == round(density * 100) - 1
    assert np.count_nonzero(jm.ties(matrices, density=density)) == cut_off + 1
    as_tools_do = exactly(density, matrices.shape)
    assert np.count_nonzero(jm.ties(matrices, **as_tools_do)) == cut_off
