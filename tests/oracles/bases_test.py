"""The bases of KnOTS, Core Space and TARA, and merges that depend on them.

Singular vectors are compared up to a joint sign, direction by direction, and only
those that are not null: the official codes keep arbitrary vectors there, ours zeros.
"""

from functools import partial

import conditioning
import jax
import numpy as np
from documented import code_of
from golden import Entry, assert_close, distance, least
from oracle import oracle

import jaxmerge as jm
from jaxmerge.stacks import concatenate

ties = code_of("ties.md")
COMBINE = {"mean": jm.mean_of_agreeing, "sum": jm.sum_of_agreeing}
TARA = {name: partial(ties.tara, combine=combine) for name, combine in COMBINE.items()}


def assert_same_directions(ours, official, values) -> np.ndarray:
    """Asserts that singular vectors agree up to sign, and gives the signs [k].

    Args:
      ours, official: [k, d], one vector in a row; official may have fewer or more.
      values: [k], singular values in descending order, 0 for null directions.
    """
    values = np.asarray(values, np.float64)
    rank = int(np.sum(values > 0))
    ours, official = np.asarray(ours)[:rank], np.asarray(official)[:rank]
    signs = np.sign(np.sum(ours * official, axis=1))
    errors = np.linalg.norm(signs[:, None] * ours - official, axis=1)
    bounds = conditioning.rounding(1) * conditioning.directions(values[:rank])
    assert np.max(bounds) < conditioning.WIDEST
    assert np.all(errors <= bounds), np.max(errors / bounds)
    return signs


def singular_values(matrices) -> np.ndarray:
    """Those of KnOTS, from our coordinates: the norms of the rows of S V^T."""
    return np.sqrt(np.sum(np.square(np.asarray(matrices, np.float64)), axis=(0, 2)))


def check_basis(entry, module, names):
    """U, s and V^T [p, T n] of the official code are ours, up to signs."""
    u_name, s_name, v_name = (f"{name}/{module}" for name in names)
    rows, basis = entry.coordinates(jm.knots)[module]
    s = singular_values(rows)
    vt = np.concatenate(rows, axis=1) / np.where(s > 0, s, 1)[:, None]
    official = entry.read(s_name)
    kept = len(official)
    assert np.sum(s > 1e-5) == kept
    assert_close(s[:kept], official, 5e-6, f"{entry.id} {s_name}")
    if entry.has(u_name):
        s = np.where(s > 1e-5, s, 0)
        left = assert_same_directions(basis.T, entry.read(u_name).T, s)
        right = assert_same_directions(vt, entry.read(v_name), s)
        assert np.array_equal(left, right)


@oracle("knots.components")
def test_basis_of_knots(entry):
    for module in entry.modules:
        check_basis(entry, module, ("U", "s", "V"))


@oracle("fusion.knots_align")
def test_singular_values_of_fusion_bench(entry):
    """The same values; FusionBench drops those up to 1e-4 instead of 1e-5."""
    for module, (rows, _) in entry.coordinates(jm.knots).items():
        official = entry.read(f"S/{module}")
        s = singular_values(rows)
        assert np.sum(s > entry["eps"]) == len(official)
        assert_close(s[: len(official)], official, 5e-6, entry.id)


@oracle("core.components")
def test_basis_of_core_space(entry):
    """The cores M_t in the singular bases of the stacked factors, up to signs."""
    for module, stack in entry.stacks().items():
        cores, basis = entry.coordinates(jm.core)[module]
        everyone, values = concatenate(stack), {}
        for name in "AB":
            factor = getattr(everyone, name.lower())
            s = np.linalg.svd(factor, compute_uv=False)
            values[name] = np.where(s > 1e-12 * s[0], s, 0)
            official = entry.read(f"sv_{name}_stack/{module}")
            assert_close(values[name], official, 5e-6, entry.id)
        if entry.has(f"M/{module}"):
            u, vt = entry.read(f"U_B_ref/{module}"), entry.read(f"Vh_A_ref/{module}")
            left = assert_same_directions(basis.b.T, u.T, values["B"])
            right = assert_same_directions(basis.a, vt, values["A"])
            p, q = len(left), len(right)
            turned = left[:, None] * np.asarray(cores)[:, :p, :q] * right
            moves = [
                np.hypot(
                    conditioning.entrywise(values["B"][:p], core),
                    conditioning.entrywise(values["A"][:q], core.T),
                )
                for core in turned
            ]
            relative = np.linalg.norm(moves) / np.linalg.norm(turned)
            tolerance = least(np.float64) + conditioning.rounding(relative)
            official = entry.read(f"M/{module}")
            assert_close(turned, official[:, :p, :q], tolerance, entry.id)
            assert not np.any(cores[:, p:])
            assert not np.any(cores[:, :, q:])
        check_unscaled_basis(entry, module)


def check_unscaled_basis(entry, module):
    """The "knots" of the Core Space code: V without S."""
    rows, basis = entry.coordinates(jm.knots_unscaled)[module]
    s = np.linalg.norm(basis, axis=0)
    official = entry.read(f"knots_S/{module}")
    kept = len(official)
    assert_close(s[:kept], official, 5e-6, entry.id)
    if entry.has(f"knots_U/{module}"):
        s = np.where(np.arange(len(s)) < kept, s, 0)
        u = np.asarray(basis) / np.where(s > 0, s, 1)
        left = assert_same_directions(u.T, entry.read(f"knots_U/{module}").T, s)
        blocks = np.concatenate(entry.read(f"knots_Vblocks/{module}"), axis=1)
        vt = np.concatenate(rows, axis=1)
        assert np.array_equal(assert_same_directions(vt, blocks, s), left)


def stored_basis(entry, names) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Module -> coordinates S V^T [T, p, n] and U, as the official code had them."""
    coordinates = {}
    for module in entry.modules:
        u, s, vt = (entry.peek(f"{name}/{module}") for name in names)
        rows = np.split(s[:, None] * vt, entry.case.tasks, axis=1)
        coordinates[module] = np.stack(rows).astype(np.float64), u.astype(np.float64)
    return coordinates


def negative_at_zero(matrices):
    """KnOTS with ``sum_of_signs``: what ties is not resolved and counts as -."""
    votes = np.sign(matrices).sum(axis=0)
    return np.where(votes > 0, 1.0, -1.0)


@oracle("knots.svd/*_signs")
def test_knots_with_sum_of_signs(entry):
    """Depends on the signs of singular vectors: compared in the stored basis."""
    assert entry["sign_resolve_mode"] == "sum_of_signs"
    basis = entry.case.entries["knots.components"]
    coordinates = stored_basis(basis, ("U", "s", "V"))
    blocks = [matrices for matrices, _ in coordinates.values()]
    size = sum(block[0].size for block in blocks)
    count = int(size * entry["topK"] / 100) + 1
    threshold = np.asarray(jax.jit(jm.magnitude_threshold)(blocks, count))
    merged = {}
    for name, (matrices, u) in coordinates.items():
        kept = np.where(np.abs(matrices) >= threshold[:, None, None], matrices, 0)
        merged[name] = u @ np.asarray(jm.elect(kept, sign=negative_at_zero))
    entry.check(merged, tolerance=5e-6)


def tara_density(entry, matrices) -> float:
    return ties.rounded(entry["topK"], matrices[0].size)


@oracle("tara.KnOTS/*", where=lambda entry: entry.has_dw)
def test_tara_knots(entry):
    """Elects by count, so it depends on signs; compared in the stored basis.

    Where no count can tie (three tasks, nothing trimmed) our own basis gives it too.
    """
    basis: Entry = next(
        other
        for other in entry.case.entries.values()
        if other.family == "tara.KnOTS" and "U" in other.quantities
    )
    combine = COMBINE[entry["merging_type"]]
    merged = {}
    for name, (matrices, u) in stored_basis(basis, ("U", "s", "Vh")).items():
        density = tara_density(entry, matrices)
        merged[name] = u @ np.asarray(tara(matrices, density, combine))
        if entry.has(f"s/{name}"):
            check_basis(entry, name, ("U", "s", "Vh"))
    entry.check(merged, tolerance=5e-6)
    if entry.status == "unique":
        assert entry.case.tasks % 2
        assert entry["topK"] == 1
        stacks, rule = entry.stacks(), TARA[entry["merging_type"]]
        for dtype in entry.dtypes:
            updates = entry.merge_in(jm.knots, rule, dtype, density=1.0)
            entry.check(
                updates,
                dtype,
                moves=lambda name: conditioning.merged_entrywise(
                    jm.knots, stacks[name], merged[name]
                ),
            )


@partial(jax.jit, static_argnums=2)
def tara(matrices, density, combine):
    return ties.tara(matrices, density=density, combine=combine)


@oracle("tara.KnOTS/*", where=lambda entry: not entry.has_dw)
def test_tara_knots_without_a_stored_basis(entry):
    """Eight tasks tie often, and a tie goes to + whatever the sign of the direction."""
    assert entry.case.tasks % 2 == 0
    rule = TARA[entry["merging_type"]]
    for name, (matrices, u) in entry.coordinates(jm.knots).items():
        density = tara_density(entry, matrices)
        turned = -np.asarray(matrices)
        there = u @ jm.dense(rule(matrices, density=density))
        back = -u @ jm.dense(rule(turned, density=density))
        assert distance(there, back) > 0.01, name
