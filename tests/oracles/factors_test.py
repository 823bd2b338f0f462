"""Mergers of factors: PEFT's element-wise combinations, RobustMerge and LoRA-LEGO.

They merge A and B apart, so their results are not functions of the updates; jaxmerge
has their steps. All but LoRA-LEGO need equal ranks, in the official codes too.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from documented import code_of
from golden import assert_close
from oracle import oracle

import jaxmerge as jm
from jaxmerge.mergers.factored import (
    assemble_units,
    complementary_scales,
    k_means,
    semantic_units,
)

ties = code_of("ties.md")
SIGN = {"total": ties.plus_at_zero, "frequency": jm.sign_of_count}


def peft_weights(entry, dtype) -> np.ndarray:
    """Weights times lora_alpha / r, which PEFT applies to unscaled factors."""
    scales = np.asarray(entry.case.alphas) / np.asarray(entry.case.ranks)
    return np.asarray(entry["weights"] * scales, dtype)


def share_of(entry, factors) -> float:
    size = factors[0].size
    return ties.keeping(int(entry.get("density", 1.0) * size), size)


@jax.jit
def add_factors(stack, weights, density_b, density_a):
    """PEFT's ``linear``, and ``magnitude_prune``, which trims before."""
    root = jnp.sqrt(jnp.abs(weights))[:, None, None]
    sign = jnp.sign(weights)[:, None, None]
    return jm.LowRank(
        b=jm.total(root * jm.keep_largest(stack.b, density_b)),
        a=jm.total(sign * root * jm.keep_largest(stack.a, density_a)),
    )


run_ties_on_factors = jax.jit(ties.peft_on_factors, static_argnames="sign")


def peft(entry, dtype) -> dict[str, jm.LowRank]:
    merged = {}
    for name, stack in entry.stacks(dtype).items():
        weights = peft_weights(entry, dtype)
        densities = share_of(entry, stack.b), share_of(entry, stack.a)
        if entry.family == "peft.awa.ties":
            merged[name] = run_ties_on_factors(
                stack,
                weights=weights,
                density_b=densities[0],
                density_a=densities[1],
                sign=SIGN[entry["majority_sign_method"]],
            )
        else:
            merged[name] = add_factors(stack, weights, *densities)
    return merged


PEFT = ("peft.awa.linear/*", "peft.awa.ties/*", "peft.awa.magnitude_prune/*")


@oracle(*PEFT, where=lambda entry: entry.status == "unique")
def test_peft(entry):
    for dtype in entry.dtypes:
        merged = peft(entry, dtype)
        dense = {name: np.asarray(jm.dense(update)) for name, update in merged.items()}
        entry.check(dense, dtype)
        for factor in entry.quantities:
            for name, update in merged.items():
                ours = getattr(update, factor.lower())
                official = entry.read(f"{factor}/{name}")
                assert_close(ours, official, entry.tolerance(dtype), entry.id)


@pytest.mark.thorough
@oracle(*PEFT, where=lambda entry: entry.status == "not-unique")
def test_equal_magnitudes_at_the_threshold(entry):
    """Twice the same column: PEFT keeps one of two equal entries, ours keeps both."""
    assert "exact magnitude ties" in entry.facts["reason"]
    ((name, update),) = peft(entry, np.float64).items()
    stack = entry.stacks()[name]
    assert_close(update.a, entry.read(f"A/{name}"), 5e-6, entry.id)
    official = entry.read(f"B/{name}")
    differs = ~np.isclose(update.b, official, rtol=0, atol=1e-5)
    count = int(entry["density"] * stack.b[0].size)
    threshold = np.asarray(jax.jit(jm.magnitude_threshold)([stack.b], count))
    at_threshold = np.abs(stack.b) == threshold[:, None, None]
    doubled = np.sum(at_threshold, axis=(1, 2)) > 1
    assert np.any(doubled[1:])  # the zero adapter aside
    assert np.all(np.any(at_threshold[1:], axis=0)[differs])


@oracle(*PEFT, where=lambda entry: entry.raises)
def test_peft_of_mixed_ranks(entry):
    """PEFT refuses mixed ranks; padded factors are merged without failing."""
    assert "same r" in entry.raises
    for update in peft(entry, np.float64).values():
        assert update.b.shape[1] == max(entry.case.ranks)
        assert np.all(np.isfinite(jm.dense(update)))


@oracle("tara.RobustMerge/*", where=lambda entry: entry.has_dw)
def test_robust_merge_of_tara(entry):
    """Its steps are ours; the algorithm is TARA's own, without cross terms.

    ``mask_ratio`` is the share kept, of every factor, and one more. A row that is
    trimmed away gets the scale ``sum |A| / 1e-6`` there and 0 in ours.
    """
    for dtype in entry.dtypes:
        updates = {}
        for name, stack in entry.stacks(dtype).items():
            densities = (
                robust_density(entry, stack.b),
                robust_density(entry, stack.a),
            )
            merged = robust_merge_of_tara(stack, *densities)
            updates[name] = entry["fuse_weight"] * np.asarray(merged)
        entry.check(updates, dtype)


def robust_density(entry, factors) -> float:
    size = factors[0].size
    return ties.keeping(size - int(size * (1 - entry["mask_ratio"])) + 1, size)


@jax.jit
def robust_merge_of_tara(stack, density_b, density_a):
    kept_b = jm.keep_largest(stack.b, density_b)
    kept_a = jm.keep_largest(stack.a, density_a)
    whole = jnp.sum(jnp.abs(stack.a), axis=-1)
    scales = complementary_scales(stack.a, kept_a)
    left = jnp.sum(jnp.abs(kept_a), axis=-1)
    scales = jnp.where(left > 0, scales * left / (left + 1e-6), whole / 1e-6)
    shares = scales / (jnp.sum(scales, axis=0, keepdims=True) + 1e-6)
    return jnp.einsum("tmr,tr,trn->mn", kept_b, shares, kept_a)


@oracle("tara.RobustMerge/*", where=lambda entry: entry.status == "not-unique")
def test_robust_merge_of_equal_magnitudes(entry):
    """Equal entries at the threshold again; ours keeps all of them and is finite."""
    for update in entry.merge(jm.robust_merge).values():
        assert np.all(np.isfinite(update))
        assert np.any(update)


@oracle("tara.RobustMerge/*", where=lambda entry: entry.raises)
def test_robust_merge_refuses_mixed_ranks(entry):
    assert "equal size" in entry.raises
    for stack in entry.stacks().values():
        with pytest.raises(ValueError, match="all ranks must be equal"):
            jm.robust_merge(stack)


@oracle("tara.LoRA_LEGO/*")
def test_lora_lego(entry):
    """From the same first centres: same clusters, same assembly.

    The official code takes as many units of every adapter as the first one has.
    """
    (name,) = entry.modules
    first = entry.case.ranks[0]
    rank = entry.get("K") or first
    if entry.has("init_idx"):
        initial = entry.read("init_idx")
    else:  # one cluster for each unit
        assert rank == first * entry.case.tasks
        initial = np.arange(rank)
    reweight_output = entry.get("use_output_reweighting", True)
    output = float(np.sqrt(first / rank)) if reweight_output else 1.0
    for dtype in entry.dtypes:
        whole = entry.stacks(dtype)[name]
        stack = jm.AdapterStack(
            a=whole.a[:, :first], b=whole.b[:, :, :first], ranks=(first,) * len(whole.a)
        )
        reweight = entry.get("use_param_reweighting", True)
        update = lego(stack, initial, rank, reweight, output)
        entry.check({name: np.asarray(update)}, dtype)


@partial(jax.jit, static_argnums=(2, 3))
def lego(stack, initial, rank, reweight, output):
    units = semantic_units(stack, align=False)
    norms = [jnp.linalg.norm(x, axis=1, keepdims=True) for x in units]
    b, a = (x / jnp.where(n > 0, n, 1) for x, n in zip(units, norms, strict=True))
    clusters = k_means(jnp.concatenate([a, b], axis=1), initial, iterations=10)
    if reweight:
        update = assemble_units(units, clusters, rank)
    else:
        members = (clusters[None, :] == jnp.arange(rank)[:, None]).astype(a.dtype)
        count = jnp.sum(members, axis=1, keepdims=True)
        update = jm.LowRank(
            b=(members @ units.b / count).T, a=members @ units.a / count
        )
    return jm.dense(jm.scale(update, by=output))
