"""CtM (arXiv 2606.03723): compress all adapters to one rank together, then merge."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxmerge import linalg
from jaxmerge.mergers.spaces import in_space, project_core, rebuild_core
from jaxmerge.types import AdapterStack, LowRank, Merger, Rule, Space

Bases = tuple[jax.Array, jax.Array]  # U [p, d], V [q, d]


def tucker_bases(matrices: jax.Array, *, rank: int, iterations: int) -> Bases:
    """Bases U [p, min(r, p)] and V [q, min(r, q)] that hold most of T matrices.

    ``max sum_t ||U^T M_t V||^2`` over orthonormal columns: a Tucker-2 decomposition by
    alternating singular value decompositions (HOOI), from the one of each side alone.
    The columns are in descending order of energy; those without energy are zero.

    Args:
      matrices: [T, p, q].
      rank: r.
      iterations: passes; the energy held never falls. Differentiable.
    """
    _, p, q = matrices.shape
    transposed = linalg.transpose(matrices)

    def improve(_: Any, bases: Bases) -> Bases:
        u = _leading(linalg.matmul(matrices, bases[1][None]), min(rank, p))
        v = _leading(linalg.matmul(transposed, u[None]), min(rank, q))
        return u, v

    start = _leading(matrices, min(rank, p)), _leading(transposed, min(rank, q))
    return jax.lax.fori_loop(0, iterations, improve, start)


def project_compressed(
    stack: AdapterStack, *, rank: int, beta: float = 0.25, iterations: int = 30
) -> tuple[jax.Array, LowRank]:
    """Coordinates of all updates in common bases of a given rank.

    The bases are those of `tucker_bases` for the updates in core space, after their
    norms were brought together: ``D_t (beta + (1 - beta) mean_s ||D_s|| / ||D_t||)``.
    The coordinates ``U^T D_t V`` are of the updates themselves.

    Args:
      stack: T adapters of one module.
      rank: rank of the bases.
      beta: in [0, 1]; 1 lets every update count by its own norm, 0 all alike.
      iterations: number of iterations of `tucker_bases`.

    Returns:
      matrices [T', p, q] with p = min(rank, K, m) and q = min(rank, K, n), and the
      basis LowRank(b=U [m, p], a=V^T [q, n]).

    Raises:
      ValueError: a rank below 1.

    Cost: core space, and O(K^2 T rank) for each iteration.
    """
    if rank < 1:
        raise ValueError(f"ctm: rank must be at least 1, got {rank}")
    matrices, basis = project_core(stack)
    sizes = linalg.root(jnp.sum(matrices**2, axis=(1, 2)))
    equalised = beta + (1 - beta) * linalg.divide(jnp.mean(sizes), sizes)
    u, v = tucker_bases(
        matrices * equalised[:, None, None], rank=rank, iterations=iterations
    )
    cores = linalg.matmul(linalg.matmul(u.T[None], matrices), v[None])
    return cores, LowRank(b=linalg.matmul(basis.b, u), a=linalg.matmul(v.T, basis.a))


def compressed(*, rank: int, beta: float = 0.25, iterations: int = 30) -> Space:
    """The space of `project_compressed`, for `jaxmerge.in_space`."""
    project = partial(project_compressed, rank=rank, beta=beta, iterations=iterations)
    return Space(project, rebuild_core)


def ctm(rule: Rule, *, rank: int, beta: float = 0.25, iterations: int = 30) -> Merger:
    """CtM around any rule: the result has the given rank, whatever the rule does.

    Truncating a merge keeps what is large in the merge; this keeps what is large in
    the adapters, and the rule resolves conflicts among what is kept.

    Args:
      rule: what merges the compressed updates; TIES in the paper.
      rank: rank of the result. From that of [B_1 .. B_T] and [A_1; ..; A_T] on nothing
        is lost.
      beta: see `project_compressed`.
      iterations: see `tucker_bases`.

    Returns:
      Merger, with results of rank min(rank, K, m, n).

    Deviations: the official code iterates to a tolerance of 1e-6, at most 1000 times.

    >>> from jaxmerge.mergers.linear import total
    >>> from jaxmerge.stacks import stack_adapters
    >>> from jaxmerge.updates import dense
    >>> merge = ctm(total, rank=1)
    >>> update = merge(stack_adapters([([[3.0, 0.0], [0.0, 1.0]], jnp.eye(2))]))
    >>> print(dense(update).round(4))
    [[3. 0.]
     [0. 0.]]
    """
    return in_space(compressed(rank=rank, beta=beta, iterations=iterations), rule)


def _leading(matrices: jax.Array, count: int) -> jax.Array:
    """Leading left singular vectors of ``[M_1 .. M_T]``, [p, count]."""
    side_by_side = jnp.moveaxis(matrices, 0, 1).reshape(matrices.shape[1], -1)
    u, _, _ = linalg.svd(side_by_side)
    u = u[:, :count]
    return jnp.pad(u, ((0, 0), (0, count - u.shape[1])))
