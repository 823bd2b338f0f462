"""The spaces in which rules work: full, core, KnOTS, and their two halves.

A space projects the adapters of one module to T small matrices and rebuilds an update
from one. Linear rules give the same update in every space; spectral rules agree up to
directions in the null space, which full space alone can see; entrywise rules (TIES,
DARE) depend on the coordinates, and that is the point of choosing a space.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxmerge import linalg
from jaxmerge.doors import check_merged, check_stack
from jaxmerge.stacks import concatenate, of_present, present_factors, task_weights
from jaxmerge.types import AdapterStack, LowRank, Merger, Rule, Space, Update


def project_full(stack: AdapterStack) -> tuple[jax.Array, None]:
    """The updates themselves, ``B_t A_t``: [T, m, n]. The one place that forms them."""
    b, a = present_factors(stack)
    return linalg.matmul(b, a), None


def rebuild_full(matrix: jax.Array, basis: None) -> jax.Array:
    """A matrix in full space is a dense update [m, n]."""
    return matrix


def project_core(stack: AdapterStack) -> tuple[jax.Array, LowRank]:
    """Coordinates in the core space of all adapters (arXiv 2509.17786).

    With the singular value decompositions ``[B_1 .. B_T] = U ..`` and
    ``[A_1; ..; A_T] = .. V^T``, ``M_t = (U^T B_t) (A_t V)`` and
    ``B_t A_t = U M_t V^T`` without loss.

    Returns:
      matrices [T, p, q] with p = min(K, m) and q = min(K, n), and the basis
      LowRank(b=U [m, p], a=V^T [q, n]) with vectors in descending order of singular
      value (their order and rotation matter to entrywise rules, their signs do not).

    Cost: O((m + n) K^2) time, O((m + n) K + T K^2) memory.

    Deviations: the official code takes the SVD of each B_t and A_t first, which
    changes nothing. Directions that are rounding noise are zero here and arbitrary
    there.
    """
    factors, basis = core_factors(stack)
    return linalg.matmul(*factors), basis


def core_factors(stack: AdapterStack) -> tuple[LowRank, LowRank]:
    """The adapters in the coordinates of their core space, still as factors.

    Returns:
      LowRank(b = U^T B_t [T, p, R], a = A_t V [T, R, q]) of the present tasks, padded
      with zeros, and the basis as in `project_core`.
    """
    everyone = concatenate(stack)
    u, columns = linalg.column_basis(everyone.b)
    rows, vt = linalg.row_basis(everyone.a)
    b, a, most, first = [], [], max(stack.ranks), 0
    for rank in (stack.ranks[t] for t in stack.present):
        taken, padding = slice(first, first + rank), (0, most - rank)
        b.append(jnp.pad(columns[:, taken], ((0, 0), padding)))
        a.append(jnp.pad(rows[taken], (padding, (0, 0))))
        first += rank
    return LowRank(b=jnp.stack(b), a=jnp.stack(a)), LowRank(b=u, a=vt)


def rebuild_core(matrix: jax.Array, basis: LowRank) -> LowRank:
    """``U M V^T`` at rank p, kept as factors."""
    return LowRank(b=linalg.matmul(basis.b, matrix), a=basis.a)


def core_update(core: jax.Array, basis: LowRank) -> LowRank:
    """``U M V^T`` as factors of the smaller width of U and V."""
    if core.shape[0] < core.shape[1]:
        return LowRank(b=basis.b, a=linalg.matmul(core, basis.a))
    return rebuild_core(core, basis)


def project_knots(stack: AdapterStack) -> tuple[jax.Array, jax.Array]:
    """Coordinates of KnOTS (arXiv 2410.19735): ``R_t = S V_t^T``, so ``D_t = U R_t``.

    ``U S [V_1^T .. V_T^T]`` is the singular value decomposition of
    ``[B_1 A_1 | .. | B_T A_T]`` [m, T n], found through factors only: U and S are those
    of the m x K matrix ``[B_1 L_1 .. B_T L_T]``, ``L_t L_t^T = A_t A_t^T``, and
    ``R_t = U^T B_t A_t``.

    Returns:
      matrices [T, p, n] with p = min(K, m), and the basis U [m, p].

    Cost: O((m + n) K^2) time, O(T K n) memory.

    Deviations: the official code keeps s > 1e-5, an absolute bound; here the bound is
    relative to the largest singular value.
    """
    u, _ = _knots_basis(stack)
    return _knots_rows(stack, u), u


def rebuild_knots(matrix: jax.Array, basis: jax.Array) -> LowRank:
    """``U R`` at rank p, kept as factors."""
    return LowRank(b=basis, a=matrix)


def project_knots_unscaled(stack: AdapterStack) -> tuple[jax.Array, jax.Array]:
    """The "knots" space of the Core Space code: ``V_t^T`` without S.

    Its rules see every direction with the same weight, unlike those of KnOTS.

    Returns:
      matrices [T, p, n], and the basis ``U S`` [m, p].
    """
    u, s = _knots_basis(stack)
    inverse = linalg.divide(1, s)
    return _knots_rows(stack, u * inverse[None, :]), u * s[None, :]


def core_size(matrices: jax.Array, basis: LowRank) -> jax.Array:
    """Entries of a core matrix in directions that exist."""
    return _directions(basis.b.T) * _directions(basis.a)


def knots_size(matrices: jax.Array, basis: jax.Array) -> jax.Array:
    """Entries of a matrix of KnOTS in directions that exist."""
    return _directions(basis.T) * matrices.shape[-1]


def _directions(vectors: jax.Array) -> jax.Array:
    return jnp.sum(jnp.any(vectors != 0, axis=1))


full: Space = Space(project_full, rebuild_full)
core: Space = Space(project_core, rebuild_core, core_size)
knots: Space = Space(project_knots, rebuild_knots, knots_size)
knots_unscaled: Space = Space(project_knots_unscaled, rebuild_knots, knots_size)


def in_space(space: Space, rule: Rule) -> Merger:
    """A merger that applies a rule to the coordinates of a space.

    Tasks that do not adapt a module take no part in its merge. The rule receives the
    true ranks of the others as ``ranks``, the number of entries without null directions
    as ``size`` if the space has any, and everything else that is given in a call.
    Task ``weights`` multiply the coordinates, so they do not change the basis. Of
    ``densities`` it gets those of the tasks that take part.

    >>> from jaxmerge.mergers.linear import total
    >>> from jaxmerge.stacks import stack_adapters
    >>> from jaxmerge.updates import dense
    >>> merge = in_space(core, total)
    >>> stack = stack_adapters([([[1.0]], [[2.0]]), ([[3.0]], [[1.0]])])
    >>> print(dense(merge(stack, weights=[1.0, 2.0])).round(4))
    [[8.]]
    """

    def merge(
        stack: AdapterStack,
        *,
        weights: ArrayLike | None = None,
        densities: ArrayLike | None = None,
        **extra: Any,
    ) -> Update:
        check_stack(rule, stack, extra)
        if densities is not None:
            extra["densities"] = of_present(stack, densities, name="densities")
        matrices, basis = space.project(stack)
        if weights is not None:
            matrices = matrices * task_weights(stack, weights)[:, None, None]
        if space.size is not None:
            extra["size"] = space.size(matrices, basis)
        return merged_in(space, rule, stack, (matrices, basis), **extra)

    return merge


def merged_in(
    space: Space,
    rule: Rule,
    stack: AdapterStack,
    projected: tuple[jax.Array, Any],
    **extra: Any,
) -> Update:
    """The update that a rule makes of coordinates, those of every present task."""
    matrices, basis = projected
    ranks = tuple(stack.ranks[t] for t in stack.present)
    merged = rule(matrices, ranks=ranks, **extra)
    check_merged(rule, matrices, merged)
    return space.rebuild(merged, basis)


def full_space(rule: Rule) -> Merger:
    """Merges the updates themselves; the only space with an m x n cost: O(T m n)."""
    return in_space(full, rule)


def core_space(rule: Rule) -> Merger:
    """Merges in core space: see `project_core`."""
    return in_space(core, rule)


def knots_space(rule: Rule) -> Merger:
    """Merges in the space of KnOTS: see `project_knots`."""
    return in_space(knots, rule)


def knots_unscaled_space(rule: Rule) -> Merger:
    """Merges in KnOTS space without S: see `project_knots_unscaled`."""
    return in_space(knots_unscaled, rule)


def _knots_basis(stack: AdapterStack) -> tuple[jax.Array, jax.Array]:
    b, a = present_factors(stack)
    left, sizes, _ = linalg.svd(a)
    scaled = linalg.matmul(b, left * sizes[:, None, :])
    ranks = [min(stack.ranks[t], left.shape[2]) for t in stack.present]
    u, s, _ = linalg.svd(
        jnp.concatenate([x[:, :rank] for x, rank in zip(scaled, ranks, strict=True)], 1)
    )
    return u, s


def _knots_rows(stack: AdapterStack, u: jax.Array) -> jax.Array:
    b, a = present_factors(stack)
    return linalg.matmul(linalg.einsum("mp,tmr->tpr", u, b), a)
