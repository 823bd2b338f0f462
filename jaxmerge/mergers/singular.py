"""Rules on singular values and vectors: TSV-M, Iso-C, Iso-CTS, CART.

None of them lets null directions in. With LoRA the updates have a low rank, and the
official full-space codes fill the rest with whatever vectors the SVD routine returns:
on such inputs their results differ between routines and most of their energy can lie
outside the adapters' span.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxmerge import linalg
from jaxmerge.doors import check_matrices, check_stack
from jaxmerge.stacks import present_factors, task_weights
from jaxmerge.types import AdapterStack, LowRank
from jaxmerge.updates import dense, isotropize


def tsv(
    matrices: jax.Array, *, ranks: Sequence[int] | None = None, **extra: Any
) -> jax.Array:
    """Task singular vectors with reduced interference, TSV-M (arXiv 2412.00081).

    The leading singular triplets of all tasks are set side by side, the left and the
    right vectors are replaced by their nearest orthonormal ones (`linalg.polar`), and
    ``U diag(s) V^T`` is rebuilt from them.

    Args:
      matrices: [T, p, q].
      ranks: true rank of each matrix (the spaces give it); min(p, q) unless given.

    Returns:
      [p, q]. Task t enters with ``ranks[t]`` triplets if all together fit into
      min(p, q), with at most ``max(1, min(p, q) // T)`` otherwise.

    Cost: T + 2 SVDs of size p x q. On adapters `tsv_m` gives the same from factors.

    Deviations: the official code always takes ``min(p, q) // T`` triplets, null vectors
    included, which makes its result arbitrary where the rank is smaller, and zero where
    tasks outnumber directions. Here every task has at least one; where that is more
    vectors than can be orthonormal, the polar factors share their directions out.

    >>> print(tsv(jnp.array([[[2.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 3.0]]])))
    [[2. 0.]
     [0. 3.]]
    """
    check_matrices(tsv, matrices, extra)
    tasks, p, q = matrices.shape
    u, s, vt = linalg.svd(matrices)
    counts = _directions_per_task(ranks or (min(p, q),) * tasks, min(p, q))
    return linalg.matmul(*_reduce_interference(u, s, vt, counts))


def tsv_m(
    stack: AdapterStack, *, weights: ArrayLike | None = None, **extra: Any
) -> LowRank:
    """TSV-M from the factors: the update of ``core_space(tsv)``, without its bases.

    Args:
      stack: T adapters of one module.
      weights: [T], multiply the singular values of each task; a task of weight 0 takes
        no part.

    Returns:
      LowRank of rank K, or less where all ranks together exceed min(m, n): see `tsv`.

    Cost: O((m + n) K^2 + K^3), two SVDs of K x K and T of r x r.
    """
    check_stack(tsv_m, stack, extra)
    weights = task_weights(stack, weights)
    m, n = stack.b.shape[1], stack.a.shape[2]
    ranks = tuple(stack.ranks[t] for t in stack.present)
    counts = _directions_per_task(ranks, min(m, n))
    u, s, vt = linalg.svd_of_product(*present_factors(stack))
    taking_part = jnp.broadcast_to(weights[:, None] != 0, s.shape)
    u, s, vt = linalg.keep_directions(u, s * weights[:, None], vt, taking_part)
    return _reduce_interference(u, s, vt, counts)


def iso_c(matrices: jax.Array, **extra: Any) -> jax.Array:
    """Isotropic merging in common subspace (arXiv 2502.04959): `isotropize` the sum.

    On adapters ``then(concat, isotropize)`` gives the same from factors.

    >>> print(iso_c(jnp.array([[[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 3.0]]])))
    [[2. 0.]
     [0. 2.]]
    """
    check_matrices(iso_c, matrices, extra)
    return dense(isotropize(jnp.sum(matrices, axis=0)))


def iso_cts(
    matrices: jax.Array,
    *,
    common_fraction: float = 0.8,
    ranks: Sequence[int] | None = None,
    **extra: Any,
) -> jax.Array:
    """Isotropic merging in common and task-specific subspaces (arXiv 2502.04959).

    Of d directions, about ``common_fraction`` are the leading ones (U, S, V) of the sum
    of the updates; the others are shared out evenly, as the leading ones of each
    task's residual ``(I - U U^T) M_t``: ``(d - floor(d common_fraction)) / T`` for each
    task, rounded to a whole number of which there are enough. All left and all right
    vectors are made orthonormal (`linalg.polar`) and every singular value is set to the
    mean.

    Args:
      matrices: [T, p, q].
      common_fraction: share of the directions that is common, in (0, 1].
      ranks: true rank of each matrix; with them ``d = min(p, q, sum(ranks))``.

    Returns:
      [p, q].

    Raises:
      ValueError: a common fraction outside (0, 1].

    Cost: T + 3 SVDs of size p x q.

    Deviations: d is the number of directions that the adapters span, where the
    official code counts min(p, q) and fills up with null vectors; the mean is over the
    singular values that are not rounding noise, and a task without a residual adds no
    direction. Where the official code rounds to more than d / T directions of each
    task, it takes a negative number of common ones; here each has at most ``d // T``.
    """
    check_matrices(iso_cts, matrices, extra)
    if not 0 < common_fraction <= 1:
        raise ValueError(
            f"iso_cts: common_fraction must be in (0, 1], got {common_fraction}"
        )
    tasks, p, q = matrices.shape
    d = min(p, q, sum(ranks)) if ranks else min(p, q)
    specific = min(round((d - int(d * common_fraction)) / tasks), d // tasks)
    common = d - specific * tasks
    u, s, vt = linalg.svd(jnp.sum(matrices, axis=0))
    u, s, vt = u[:, :common], s[:common], vt[:common]
    common_part = linalg.einsum("pk,tpq->tkq", u, matrices)
    residual = matrices - linalg.einsum("pk,tkq->tpq", u, common_part)
    own_u, own_s, own_vt = linalg.svd(residual)
    sizes = jnp.sqrt(jnp.sum(matrices * matrices, axis=(1, 2)))[:, None]
    above_noise = ~(own_s <= linalg.rank_tolerance(own_s.dtype) * sizes)
    own_u, own_s, own_vt = linalg.keep_directions(own_u, own_s, own_vt, above_noise)
    left = jnp.concatenate([*own_u[:, :, :specific], u], axis=1)
    right = jnp.concatenate([*own_vt[:, :specific, :], vt], axis=0)
    values = jnp.concatenate([own_s[:, :specific].reshape(-1), s])
    mean = jnp.sum(values) / jnp.maximum(jnp.sum(values > 0), 1).astype(values.dtype)
    return mean * linalg.matmul(linalg.polar(left), linalg.polar(right))


def cart(
    matrices: jax.Array,
    *,
    rank_fraction: float = 0.04,
    by: ArrayLike = 0.1,
    ranks: Sequence[int] | None = None,
    **extra: Any,
) -> jax.Array:
    """Centred arithmetic with rank-reduced task vectors, CART (arXiv 2412.12153).

    ``mean + by * sum_t SVD_k(M_t - mean)``, where SVD_k keeps the
    ``k = ceil(rank_fraction * min(p, q))`` leading directions of a deviation.

    Args:
      matrices: [T, p, q].
      rank_fraction: share of the directions to keep, in (0, 1]. It refers to the size
        of the space: the same number keeps fewer directions in core than in full space.
      by: scale of the deviations.

    Returns:
      [p, q].

    Raises:
      ValueError: a rank fraction outside (0, 1].
    """
    check_matrices(cart, matrices, extra)
    if not 0 < rank_fraction <= 1:
        raise ValueError(f"cart: rank_fraction must be in (0, 1], got {rank_fraction}")
    p, q = matrices.shape[1:]
    k = math.ceil(rank_fraction * min(p, q))
    centre = jnp.mean(matrices, axis=0)
    u, s, vt = linalg.svd(matrices - centre[None])
    kept = linalg.einsum("tpk,tk,tkq->pq", u[:, :, :k], s[:, :k], vt[:, :k, :])
    return centre + jnp.asarray(by, matrices.dtype) * kept


def _directions_per_task(ranks: Sequence[int], size: int) -> tuple[int, ...]:
    if sum(ranks) <= size:
        return tuple(ranks)
    return tuple(min(rank, max(1, size // len(ranks))) for rank in ranks)


def _reduce_interference(
    u: jax.Array, s: jax.Array, vt: jax.Array, counts: Sequence[int]
) -> LowRank:
    """The leading triplets of every task side by side, with orthonormal vectors."""
    left = jnp.concatenate([u[t, :, :k] for t, k in enumerate(counts)], axis=1)
    right = jnp.concatenate([vt[t, :k, :] for t, k in enumerate(counts)], axis=0)
    values = jnp.concatenate([s[t, :k] for t, k in enumerate(counts)])
    return LowRank(b=linalg.polar(left) * values[None, :], a=linalg.polar(right))
