"""Reversible merging (arXiv 2510.14163): T adapters in terms of fewer components."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmerge import linalg
from jaxmerge.doors import check_stack
from jaxmerge.mergers.ctm import tucker_bases
from jaxmerge.mergers.spaces import core_update, project_core
from jaxmerge.refusals import Refusal
from jaxmerge.stacks import near_norms, of_present
from jaxmerge.types import AdapterStack, LowRank

_ROUNDS = 30  # of the search for bases of a rank


class ReversibleMerge(NamedTuple):
    """The adapters of one module in terms of d components that they share.

    The update of task t is ``U (sum_j coefficients[t, j] components[j]) V^T``, see
    `restore_adapter`.
    """

    basis: LowRank  # b = U [m, p], a = V^T [q, n]
    components: jax.Array  # [d, p, q], orthonormal, in descending order of energy
    coefficients: jax.Array  # [T, d]; a row of zeros where a task has no adapter


class CompressionCurve(NamedTuple):
    """What every number of components costs and loses, for one module.

    Numbers are those that a file would hold: directions and components that do not
    exist, of duplicate, deficient or zero adapters, are not counted.
    """

    components: jax.Array  # [d]: 1, 2, .. up to the number of adapters
    errors: jax.Array  # [d, T], ||restored - own|| / ||own||; 0 where own is zero
    numbers: jax.Array  # [d], of U, V, components and coefficients
    core_numbers: jax.Array  # [], of U, V and one core for each adapter
    adapter_numbers: jax.Array  # [], of the factors as they are, K (m + n)


def compress_adapters(
    stack: AdapterStack, *, components: int, rank: int | None = None
) -> ReversibleMerge:
    """Writes T adapters as combinations of a few components that they share.

    In core space ``B_t A_t = U M_t V^T``, and inner products of updates are those of
    their cores M_t. With the singular value decomposition of the cores as T vectors of
    norm 1, ``diag(1 / ||M_t||) [vec M_1; ..; vec M_T] = X diag(s) Y^T``, the components
    are the first rows of ``Y^T`` and the coefficients the first columns of
    ``diag(||M_t||) X diag(s)``. No other components of that number give a smaller sum
    of squared relative errors. With T of them everything comes back exactly.

    What is stored, at K directions in all and p components:

    ================  ===========================
    the adapters      ``K (m + n)``
    T cores           ``K (m + n) + T K^2``
    p components      ``K (m + n) + p (K^2 + T)``
    ================  ===========================

    So components need fewer numbers than cores for every p < T, and more for p = T,
    where cores are as exact. Neither needs fewer than the adapters, as long as these
    have K different directions: what both save is bought by a ``rank`` below K, which
    takes the place of K in the table, or is there already where adapters share their
    directions, as copies and those with one frozen A do. `compression_curve` counts.

    Args:
      stack: T adapters of one module, of any ranks.
      components: p, at least 1; those beyond the number of adapters are left out.
      rank: width of U and V, found for all updates together by
        `jaxmerge.mergers.ctm.tucker_bases`; None for all directions, without loss.

    Returns:
      ReversibleMerge.

    Raises:
      Refusal: no stack, or a number below 1.

    Cost: that of core space, O((m + n) K^2), and O(T^2 K^2); no m x n matrix.

    Deviations: the source takes components of each row of A and each column of B over
    the tasks, so that what is lost depends on how an update is split into factors, and
    sums of factors bring cross terms. Here the components are those of the updates,
    which no change of factors alters. What we know of it is silent on centring and on
    weights: nothing is centred, so that a zero adapter stays zero and T components are
    enough, and every adapter counts the same, so that a weak one is not given up.

    >>> from jaxmerge.stacks import stack_adapters
    >>> from jaxmerge.updates import dense
    >>> one, twice = ([[1.0], [2.0]], [[3.0]]), ([[1.0], [2.0]], [[6.0]])
    >>> merge = compress_adapters(stack_adapters([one, twice]), components=1)
    >>> print(dense(restore_adapter(merge, 1)).round())
    [[ 6.]
     [12.]]
    """
    check_counts(compress_adapters, stack, components=components, rank=rank)
    vectors, basis, _, norms = shared_cores(stack, rank)
    x, s, yt = linalg.svd(vectors)
    found = (norms[:, None] * x * s[None, :])[:, :components]
    everyone = jnp.zeros((len(stack.ranks), found.shape[1]), found.dtype)
    shape = basis.b.shape[1], basis.a.shape[0]
    return ReversibleMerge(
        basis=basis,
        components=yt[:components].reshape(-1, *shape),
        coefficients=everyone.at[jnp.asarray(stack.present)].set(found),
    )


def restore_adapter(merge: ReversibleMerge, task: int | jax.Array) -> LowRank:
    """The update of one task, from its coefficients.

    Args:
      merge: of `compress_adapters`.
      task: from 0; it may be traced, so that one program or ``jax.vmap`` serves all.

    Returns:
      LowRank of rank min(p, q), the smaller width of U and V; zero for a task that has
      no adapter.

    Raises:
      Refusal: no such merge or task.

    Cost: O(d p q) for the core, and O(m p q) or O(p q n).
    """
    _check_merge(merge)
    tasks = len(merge.coefficients)
    if isinstance(task, int) and not -tasks <= task < tasks:
        raise Refusal(
            f"restore_adapter: the merge has {tasks} tasks, from 0 on; there is no "
            f"task {task}"
        )
    core = linalg.einsum("d,dpq->pq", merge.coefficients[task], merge.components)
    return core_update(core, merge.basis)


def compression_curve(
    stack: AdapterStack, *, rank: int | None = None
) -> CompressionCurve:
    """Errors and stored numbers of `compress_adapters` for every number of components.

    With ``f = X diag(s)`` the squared relative error of task t at p components is
    ``sum_{j>p} f_tj^2``, plus what a ``rank`` below K leaves out: one decomposition for
    all p, and no difference of large numbers.

    Args:
      stack: T adapters of one module.
      rank: as for `compress_adapters`.

    Returns:
      CompressionCurve, of d = min(number of adapters, p q) rows. Where nothing is left
      out the error is 0; what comes back is then exact up to rounding.

    Cost: that of `compress_adapters`.

    >>> from jaxmerge.stacks import stack_adapters
    >>> left, right = ([[1.0], [0.0]], [[4.0, 0.0]]), ([[0.0], [1.0]], [[0.0, 3.0]])
    >>> curve = compression_curve(stack_adapters([left, right, left]))
    >>> print(curve.errors.round(3))
    [[0. 1. 0.]
     [0. 0. 0.]
     [0. 0. 0.]]
    >>> print(curve.numbers, curve.core_numbers, curve.adapter_numbers)
    [15 22 22] 20 12
    """
    check_counts(compression_curve, stack, rank=rank)
    vectors, basis, outside, _ = shared_cores(stack, rank)
    x, s, _ = linalg.svd(vectors)
    energy = (x * s[None, :]) ** 2
    beyond = jnp.cumsum(energy[:, ::-1], axis=1)[:, ::-1]  # from component j on
    tail = jnp.pad(beyond[:, 1:], ((0, 0), (0, 1)))
    lost = tail + outside[:, None]
    share = linalg.divide(lost, beyond[:, :1] + outside[:, None])
    errors = jnp.zeros((s.shape[0], len(stack.ranks)), s.dtype)
    errors = errors.at[:, jnp.asarray(stack.present)].set(linalg.root(share).T)

    m, n, present = stack.b.shape[1], stack.a.shape[2], len(stack.present)
    p, q = (jnp.sum(jnp.any(v != 0, axis=1)) for v in (basis.b.T, basis.a))
    counts = jnp.arange(1, s.shape[0] + 1)
    bases = m * p + n * q
    return CompressionCurve(
        components=counts,
        errors=errors,
        numbers=bases + jnp.minimum(counts, jnp.sum(s > 0)) * (p * q + present),
        core_numbers=bases + present * p * q,
        adapter_numbers=jnp.asarray(sum(stack.ranks) * (m + n)),
    )


class SharedCores(NamedTuple):
    """The updates of the present tasks, brought to norm 1, in shared bases."""

    vectors: jax.Array  # [T', p q], the cores
    basis: LowRank
    outside: jax.Array  # [T'], squared norms of what the bases leave out
    norms: jax.Array  # [T']


def shared_cores(stack: AdapterStack, rank: int | None) -> SharedCores:
    """Cores in bases of a width that serve all adapters alike, whatever their norms."""
    norms, units = near_norms(stack)
    near = stack.replace(
        b=stack.b * (units.b * linalg.divide(1, norms))[:, None, None],
        a=stack.a * units.a[:, None, None],
    )
    cores, basis = project_core(near)
    outside = jnp.zeros(len(cores), cores.dtype)
    if rank is not None:
        u, v = tucker_bases(cores, rank=rank, iterations=_ROUNDS)
        kept = linalg.matmul(linalg.matmul(u.T[None], cores), v[None])
        back = linalg.matmul(linalg.matmul(u[None], kept), v.T[None])
        outside = jnp.sum((cores - back) ** 2, axis=(1, 2))
        cores = kept
        basis = LowRank(b=linalg.matmul(basis.b, u), a=linalg.matmul(v.T, basis.a))
    norms = of_present(stack, norms / units.b / units.a, name="norms")
    return SharedCores(cores.reshape(len(cores), -1), basis, outside, norms)


def check_counts(
    function: Callable[..., Any], stack: Any, **counts: int | None
) -> None:
    """Refuses what is no stack, and numbers below 1."""
    check_stack(function, stack)
    for name, count in counts.items():
        if count is not None and count < 1:
            raise Refusal(
                f"{function.__name__}: {name} must be at least 1, got {count}"
            )


def _check_merge(value: Any) -> None:
    if not isinstance(value, ReversibleMerge):
        raise Refusal("restore_adapter takes what compress_adapters makes of a stack")
