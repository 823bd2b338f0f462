"""OSRM (arXiv 2505.22934): rows of A away from the inputs of other tasks.

An initialisation before training, not a merge: when two adapters are added, inputs of
task 1 also pass through ``B_2 A_2``, and ``A_2 h_1 = 0`` removes that at the start.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxmerge import linalg
from jaxmerge.doors import check_shapes, check_update
from jaxmerge.stats.moments import (
    Moments,
    Statistics,
    check_moments,
    equal_parts,
    shrink_off_diagonal,
    spectrum,
    times_gram,
)
from jaxmerge.types import LowRank, Update


def osrm_init(
    stats: Statistics,
    *,
    rank: int,
    shrinkage: ArrayLike = 0.0,
    own: Statistics | None = None,
    subspace: int | None = None,
) -> jax.Array:
    """The rule of the paper: A spans the directions of least energy of other tasks.

    ``min_A tr(A S A^T)`` with ``A A^T = I``, S being the mean of ``z z^T`` over the
    inputs z of the other tasks, each task with the same weight. The rows are the
    eigenvectors of the ``rank`` smallest eigenvalues, the smallest first.

    Args:
      stats: `Moments` of one module for the T - 1 other tasks, stacked (`jaxmerge
        .stack_moments`), in the pretrained model, tokens of padding left out.
      rank: r, the number of rows.
      shrinkage: share in [0, 1] by which entries of S beside the diagonal shrink.
        Without it fewer tokens than n leave the rows arbitrary within the null space.
        Shrinkage towards the identity would not change them.
      own: moments of the target task itself. Among the ``subspace`` directions of
        least energy of the others, the rows are then those in which it has the most:
        ``max_A tr(A C A^T)``. Not in the paper.
      subspace: d, from ``rank`` to n; with ``own``, and only then.

    Returns:
      A [r, n] with orthonormal rows. Train A and B from there, B from zeros.

    Raises:
      ValueError: no other task, which leaves nothing to avoid; a `Sketch`, whose small
        eigenvalues are unknown; a rank or subspace that does not fit, or a subspace
        without ``own``.

    Cost: O(n^3) for one eigendecomposition. `osrm_null_space` needs none.

    Deviations: the official code takes the null space of one mean per task; see
    `osrm_null_space`. Its unused variant takes the largest eigenvalues.

    >>> from jaxmerge.stats.moments import moments_of, stack_moments
    >>> other = moments_of(jnp.array([[3.0, 0.0, 0.0], [0.0, 0.0, 2.0]]))
    >>> print(abs(osrm_init(jax.tree.map(lambda x: x[None], other), rank=1)))
    [[0. 1. 0.]]
    """
    if not isinstance(stats, Moments):
        raise ValueError(
            "osrm_init: a sketch does not know the directions of least energy; collect "
            "exact moments, or give the rows of the sketch to osrm_null_space"
        )
    check_moments(osrm_init, stats, "[T, ")
    tasks, n = stats.mean.shape
    if tasks == 0:
        raise ValueError(
            "osrm_init: there is no other task whose inputs to avoid; start as plain "
            "LoRA does (jaxmerge.kaiming_init)"
        )
    if own is None and subspace is not None:
        raise ValueError(
            f"osrm_init: subspace {subspace} chooses nothing without own; give the "
            "moments of the target task as own, or leave subspace out"
        )
    size = rank if own is None else subspace
    if size is None or not 1 <= rank <= size <= n:
        raise ValueError(
            f"osrm_init: expected 1 <= rank <= subspace <= n, got rank {rank}, "
            f"subspace {subspace}, n {n}"
        )
    if own is not None:
        check_moments(osrm_init, own, "[")
    others = equal_parts(stats)
    _, vectors = spectrum(shrink_off_diagonal(others, keep=1 - shrinkage))
    least = vectors[:, :size].T
    if own is None:
        return least
    energy = linalg.matmul(times_gram(least, own), least.T)
    _, turn = linalg.eigh(energy)
    return linalg.matmul(turn[:, ::-1][:, :rank].T, least)


def osrm_null_space(avoid: jax.Array, *, rank: int, key: jax.Array) -> jax.Array:
    """The official code's variant: random rows orthogonal to a few given vectors.

    That code avoids one mean input for each other task, ``stats.mean``; rows of a
    sketch work as well. The null space is larger than ``rank``, so the choice within
    it is arbitrary; here it is random, uniformly, and a function of the key.

    Args:
      avoid: [k, n], such as ``stats.mean`` of stacked statistics.
      rank: r, at most n - k.
      key: draws the rows.

    Returns:
      A [r, n] with orthonormal rows and ``A avoid^T = 0``.

    Raises:
      ValueError: k + rank exceeds n, so no such rows need exist.

    Cost: O(n (k + r)^2): a projection of Gaussian rows, no n x n decomposition.

    Deviations: the official means count padding and are divided by the number of
    batches less one, which changes no null space; its rows are those LAPACK returns.

    >>> a = osrm_null_space(jnp.ones((1, 4)), rank=2, key=jax.random.key(0))
    >>> print(a.shape, float(abs(a.sum(1)).max()) < 1e-6)
    (2, 4) True
    """
    check_shapes(osrm_null_space, avoid=(avoid, "[k, n]"))
    k, n = avoid.shape
    if rank < 1 or rank + k > n:
        raise ValueError(
            f"osrm_null_space: {rank} rows orthogonal to {k} vectors need rank + {k} "
            f"<= n = {n}; osrm_init takes the directions of least energy instead"
        )
    _, _, basis = linalg.svd(avoid)
    rows = jax.random.normal(key, (rank, n), avoid.dtype)
    for _ in range(2):  # once leaves rounding errors of the size of what is removed
        rows = rows - linalg.matmul(linalg.matmul(rows, basis.T), basis)
    return linalg.polar(rows)


def osrm_project(update: Update, a: jax.Array, *, scaling: ArrayLike = 1.0) -> LowRank:
    """OSRM's variant after training: the part of an update in the span of given rows.

    ``D -> (D A^+) A``, for orthonormal rows ``D A^T A``: what it does in the row space
    of A stays, the rest is dropped. Of a generic update only about r / n of the energy
    survives.

    Args:
      update: D [m, n], such as fine-tuned less pretrained weights, or factors.
      a: A [r, n], usually from `osrm_init` for the other tasks.
      scaling: alpha/r of the LoRA layer that b and a go into. It is divided out of b,
        so that the layer adds the projection. Leave it at 1 for what jaxmerge merges
        or saves.

    Returns:
      LowRank with ``scaling * b @ a`` the projection.

    Deviations: the official code does not divide by alpha/r = 2, which doubles the
    update, and computes in bfloat16.

    >>> from jaxmerge.updates import dense
    >>> update, a = jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 1.0]])
    >>> print(dense(osrm_project(update, a)), osrm_project(update, a, scaling=2.0).b)
    [[0. 2.]] [[1.]]
    """
    check_update(osrm_project, update)
    right = update.a if isinstance(update, LowRank) else update
    check_shapes(osrm_project, update=(right, "[m, n]"), a=(a, "[r, n]"))
    u, s, vt = linalg.svd(a)
    inverse = linalg.divide(1, s)
    pseudo_inverse = linalg.matmul(vt.T * inverse[None, :], u.T)
    if isinstance(update, LowRank):
        b = linalg.matmul(update.b, linalg.matmul(update.a, pseudo_inverse))
    else:
        b = linalg.matmul(update, pseudo_inverse)
    return LowRank(b=b / jnp.asarray(scaling, b.dtype), a=a)


def kaiming_init(key: jax.Array, *, rank: int, n: int) -> jax.Array:
    """A [r, n] as PEFT starts it: uniform in ``[-1, 1] / sqrt(n)``, in float32.

    The start where there is no other task to avoid, and what OSRM is compared with.
    """
    bound = n**-0.5
    return jax.random.uniform(key, (rank, n), jnp.float32, -bound, bound)
