"""Iso-C, Iso-CTS and isotropisation behind other rules, against three official codes.

The official codes set all min(p, q) singular values to their mean, those of null
directions included: the mean is diluted by rank / min(p, q), and the null space holds
an arbitrary partial isometry. Ours flattens the values that exist. So ours times
rank / min(p, q) is the official result on its range, which is what these tests assert.
"""

from functools import cache, partial

import conditioning
import jax
import numpy as np
import pytest
from documented import code_of
from golden import assert_close, least, official_directions
from oracle import oracle

import jaxmerge as jm

ties = code_of("ties.md")
ISO = ("core.*/*_iso", "tara.ISO_C", "fusion.iso_c")


def total(matrices, *, density, **extra):
    return jm.total(matrices)


def trimmed(matrices, *, density, **extra):
    return jm.ties(matrices, density=density)


def tsv(matrices, *, ranks, density):
    return jm.tsv(matrices, ranks=ranks)


RULES = {"sum": total, "ties": trimmed, "tsv": tsv}
UNKNOWN = 1e-3  # what rounding turns so far is not compared


@cache
def iso_cts(fraction: float):
    return partial(jm.iso_cts, common_fraction=fraction)


def deviates(entry) -> bool:
    """Whether the official merge before isotropisation is another one than ours.

    TSV-M outside full space takes null vectors of tasks of a low rank; the mean of
    TIES in KnOTS space counts the rounding noise of a zero adapter.
    """
    method = entry.get("merge_method")
    zero_adapter = entry.case.name == "e_deficient" and entry.family == "core.knots"
    mixed_ranks = len(set(entry.case.ranks)) > 1 and entry.family != "core.full"
    return (method == "tsv" and (mixed_ranks or zero_adapter)) or (
        method == "ties" and zero_adapter
    )


def before_and_after(entry, dtype):
    return entry.before_and_after(
        entry.space,
        RULES[entry.get("merge_method", "sum")],
        jm.isotropize,
        dtype,
        each=lambda shape: {
            "density": ties.one_more(entry.get("topK", 100), shape[1] * shape[2])
        },
    )


@oracle(*ISO, where=lambda entry: not deviates(entry))
def test_iso(entry):
    by = entry.get("scaling_coeffs", 1.0)
    exact = None
    for dtype in entry.dtypes:
        merged, flattened = before_and_after(entry, dtype)
        exact = exact or merged
        for name, update in exact.items():
            rank = rank_of(update)
            if entry.has(f"rank_pre_iso/{name}"):
                assert rank == entry.read(f"rank_pre_iso/{name}")[0]
            kept = rank_of(flattened[name])  # fewer where some are close to noise
            assert kept == rank or dtype == np.float32
            matrices, _ = entry.coordinates(entry.space)[name]
            in_core = entry.space is jm.core
            size = min(matrices.shape[1:] if in_core else update.shape)
            ours = flattened[name].astype(np.float64) * kept / size
            mean, official = np.linalg.norm(ours, 2, keepdims=True)[0], f"S_mean/{name}"
            tolerance = entry.tolerance_of(official, dtype)
            assert_close(mean, entry.read(official), tolerance, entry.id)
            if entry.has(f"dW_range/{name}"):
                compare_range(entry, name, by * ours, update, dtype)
            elif entry.has(f"dW/{name}"):
                assert kept == size
                values = np.linalg.svd(update, compute_uv=False)[:rank]
                moves = moves_before(entry, name, update) * conditioning.polar(values)
                tolerance = entry.tolerance(dtype, moves)
                assert_close(by * ours, entry.read(f"dW/{name}"), tolerance, entry.id)


def moves_before(entry, name, update) -> float:
    """How far rounding moves the update before isotropisation, relative to it."""
    if entry.get("merge_method") != "ties":
        return 1.0
    stack = entry.stacks()[name]
    moves = conditioning.merged_entrywise(entry.space, stack, update)
    return max(1.0, moves / np.linalg.norm(update))


def compare_range(entry, name, ours, update, dtype):
    """On the directions that rounding leaves in place; everywhere the same values."""
    official = entry.read(f"dW_range/{name}").astype(np.float64)
    rank, size = rank_of(update), np.linalg.norm(ours, 2)
    values = np.linalg.svd(official, compute_uv=False)[:rank]
    assert rank_of(official) == rank
    assert_close(values, np.full(rank, size), least(np.float32), entry.id)
    tsv = entry.get("merge_method") == "tsv"
    noise = entry.tolerance_of(f"dW_range/{name}", dtype)
    if tsv and np.isinf(noise):  # null vectors take part
        return
    u, s, vt = np.linalg.svd(update, full_matrices=False)
    moves = moves_before(entry, name, update)
    known = [conditioning.rounding(moves * s[0] / x) < UNKNOWN for x in s[:rank]]
    u, s, vt = u[:, : sum(known)], s[: sum(known)], vt[: sum(known)]
    tolerance = least(dtype) + conditioning.rounding(moves * conditioning.polar(s))
    if tsv:  # of vectors of the tasks that nearly depend on each other
        tolerance = max(tolerance, noise)
    assert_close(u.T @ ours @ vt.T, u.T @ official @ vt.T, tolerance, entry.id)
    if all(known):
        assert_close(ours, official, tolerance, entry.id)


def rank_of(update) -> int:
    """The numerical rank as the set defines it."""
    values = np.linalg.svd(update.astype(np.float64), compute_uv=False)
    return int(np.sum(values > 1e-6 * values[0]))


@oracle(*ISO, where=deviates)
def test_iso_of_another_merge(entry):
    """Before isotropisation the official merge is not ours: see `deviates`.

    Where the official mean is unique at all, ours is the same once TSV-M takes as few
    directions of each task. Left alone it keeps every direction that exists.
    """
    by = entry.get("scaling_coeffs", 1.0)
    _, flattened = before_and_after(entry, np.float64)
    for name, (matrices, _) in entry.coordinates(entry.space).items():
        ranks = np.linalg.matrix_rank(np.asarray(matrices), tol=1e-9)
        if entry["merge_method"] == "tsv":
            counts = np.minimum(ranks, official_directions(entry, matrices))
        else:
            counts = ranks
        assert entry.read(f"rank_pre_iso/{name}")[0] == sum(counts)
        assert rank_of(flattened[name]) == sum(ranks)
        mean = entry.read(f"S_mean/{name}")
        if entry.tolerance_of(f"S_mean/{name}") < 1e-4:
            fewer = jm.isotropize(jm.tsv(matrices, ranks=tuple(map(int, counts))))
            ours = np.linalg.norm(fewer, 2, keepdims=True)[0]
            diluted = ours * sum(counts) / min(matrices.shape[1:])
            assert_close(diluted, mean, 5e-6, entry.id)
        if entry.has(f"dW_range/{name}"):
            official = entry.read(f"dW_range/{name}").astype(np.float64)
            assert np.linalg.norm(official, 2) == pytest.approx(by * mean[0], rel=1e-5)


@oracle("*.iso_cts/*", "*.ISO_CTS/*", where=lambda entry: entry.has_dw)
def test_iso_cts(entry):
    rule, by = iso_cts(entry["common_space_fraction"]), entry.get("scaling_factor", 1.0)
    for dtype in entry.dtypes:
        entry.check(entry.merge_in(jm.full, rule, dtype, by=by), dtype)


@oracle("*.iso_cts/*", "*.ISO_CTS/*", where=lambda entry: not entry.has_dw)
def test_iso_cts_stays_in_the_span(entry):
    """The official code counts min(m, n) directions; the adapters have only K.

    So it fills up with null vectors and its result is arbitrary. Ours counts K, stays
    in the span of the adapters and is that of core space.
    """
    assert entry.status == "not-unique"
    rule = iso_cts(entry["common_space_fraction"])
    full, core = (entry.merge_in(space, rule) for space in (jm.full, jm.core))
    sizes, exist = [], []
    for name, stack in entry.stacks().items():
        sizes.append(min(stack.b.shape[1], stack.a.shape[2]))
        assert rank_of(full[name]) <= min(sizes[-1], sum(stack.ranks))
        span, _ = np.linalg.qr(np.concatenate(np.asarray(stack.b), axis=1))
        assert_close(span @ (span.T @ full[name]), full[name], 1e-9, entry.id)
        assert_close(core[name], full[name], 1e-7, entry.id)
        exist.append(sum(np.linalg.matrix_rank(stack.b)))
    assert any(d < size for d, size in zip(exist, sizes, strict=True))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_iso_cts_of_dependent_adapters_stays_in_the_span(dtype):
    """Residuals that are rounding noise add no direction."""
    rng = np.random.default_rng(0)
    b, a = rng.normal(size=(12, 3)), rng.normal(size=(3, 10))
    pairs = [(b, a), (b[:, :2], a[:2]), (b[:, 1:], a[1:])]
    stack = jm.stack_adapters(pairs, dtype=dtype)
    merged = np.asarray(jax.jit(jm.full_space(jm.iso_cts))(stack))
    span, _ = np.linalg.qr(b)
    assert_close(span @ (span.T @ merged), merged, 1e-5)
    assert np.linalg.matrix_rank(merged, tol=1e-3) == 3


@pytest.mark.parametrize(
    ("ranks", "m", "n", "fraction"),
    [
        ((2, 2, 2, 2, 2, 1, 1, 1), 20, 18, 0.1),  # 8 tasks would take 16 of 13
        ((2, 1), 9, 8, 0.3),
        ((2,) * 8, 20, 18, 0.01),  # nothing is common
        ((1,) * 5, 3, 7, 0.5),  # no direction of its own for each task
    ],
)
def test_iso_cts_of_a_small_common_share(ranks, m, n, fraction):
    """Own directions are rounded up at most to what there is: the result is flat."""
    rng = np.random.default_rng(0)
    pairs = [(rng.normal(size=(m, r)), rng.normal(size=(r, n))) for r in ranks]
    stack = jm.stack_adapters(pairs, dtype=np.float64)
    rule = iso_cts(fraction)
    merged = jax.jit(jm.full_space(rule))(stack)
    d = min(m, n, sum(ranks))
    values = np.linalg.svd(np.asarray(merged), compute_uv=False)
    assert_close(values[:d], np.full(d, values[0]), 1e-9)
    assert_close(values[d:], np.zeros(min(m, n) - d), 1e-9)
    core = jm.dense(jax.jit(jm.core_space(rule))(stack))
    assert_close(core, merged, 1e-9)
