"""Routed cores: T adapters in common bases, mixed anew for every token."""

import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxmerge import linalg
from jaxmerge.doors import check_routed
from jaxmerge.mergers.reversible import check_counts, shared_cores
from jaxmerge.mergers.spaces import core_update
from jaxmerge.refusals import Refusal
from jaxmerge.types import AdapterStack, LowRank, RoutedCores, Router


def route_cores(
    stack: AdapterStack,
    *,
    rank: int | None = None,
    gates: ArrayLike | Router | None = None,
) -> RoutedCores:
    """The cores of T adapters as experts behind the bases that they share.

    In core space ``B_t A_t = U M_t V^T`` without loss. Every token x then gets
    ``U (sum_t g_t M_t) V^T x``. Gates that are 1 for one task and 0 for all others are
    that adapter exactly; gates of 1/T are task arithmetic at 1/T, the average of the
    updates; any gates that are the same for all tokens are one adapter
    (`fixed_update`).

    Args:
      stack: T adapters of one module, of any ranks. The core of a task that is absent
        is zero, and its gate counts: it is the share of the base alone.
      rank: width of U and V, see `jaxmerge.compress_adapters`; None for all directions,
        without loss.
      gates: [T] or [B, T], or a `Router`; 1/T each unless given.

    Returns:
      RoutedCores, of ``rank (m + n) + T rank^2`` numbers and those of the gates. At
      the full rank K that is more than the T adapters have, ``K (m + n)``.

    Raises:
      Refusal: no stack, a rank below 1, or gates of other shapes.

    Cost: that of `jaxmerge.compress_adapters`; no m x n matrix. That of a token is on
    `jaxmerge.models.routed_product`.

    Source: CoMoL (arXiv 2603.00573), which trains A, B, cores and router together, and
    begins with random ones. Deviations: here bases and cores are those of adapters that
    exist, in the coordinates of core space (arXiv 2509.17786), so that no scale
    alpha / r is left; a router sees coordinates whose mean square is 1, so that one
    rate serves modules whose inputs differ in size; nothing is dropped out.

    >>> from jaxmerge.stacks import stack_adapters
    >>> from jaxmerge.updates import dense
    >>> stack = stack_adapters([([[2.0]], [[3.0]]), ([[1.0]], [[4.0]])])
    >>> routed = route_cores(stack)
    >>> for gates in ([1.0, 0.0], [0.5, 0.5]):
    ...     print(dense(fixed_update(routed, gates)).round(4))
    [[6.]]
    [[5.]]
    """
    check_counts(route_cores, stack, rank=rank)
    vectors, basis, _, norms = shared_cores(stack, rank)
    tasks, shape = len(stack.ranks), (basis.b.shape[1], basis.a.shape[0])
    own = norms[:, None, None] * vectors.reshape(-1, *shape)
    cores = jnp.zeros((tasks, *shape), own.dtype)
    cores = cores.at[jnp.asarray(stack.present)].set(own)
    if gates is None:
        gates = jnp.full(tasks, 1 / tasks, cores.dtype)
    elif not isinstance(gates, Router):
        gates = jnp.asarray(gates, cores.dtype)
    routed = RoutedCores(basis, cores, gates)
    check_routed(route_cores, routed)
    return routed


def fixed_update(routed: RoutedCores, gates: ArrayLike | None = None) -> LowRank:
    """The one update that routed cores are where the gates are the same for all tokens.

    ``U (sum_t g_t M_t) V^T``, to be saved as one adapter, or written into the weights.

    Args:
      routed: T cores.
      gates: g [T], any real numbers; those of ``routed`` unless given.

    Returns:
      LowRank of rank min(p, q).

    Raises:
      Refusal: gates that differ between tokens or examples.

    >>> from jaxmerge.updates import dense
    >>> basis = LowRank(b=jnp.eye(1), a=jnp.eye(1))
    >>> cores, gates = jnp.array([[[1.0]], [[3.0]]]), jnp.array([1.0, 1.0])
    >>> routed = RoutedCores(basis, cores, gates)
    >>> print(dense(fixed_update(routed)))
    [[4.]]
    """
    check_routed(fixed_update, routed)
    found = routed.gates if gates is None else jnp.asarray(gates, routed.cores.dtype)
    if isinstance(found, Router) or found.shape != routed.cores.shape[:1]:
        shown = "a router" if isinstance(found, Router) else f"gates {found.shape}"
        raise Refusal(
            f"fixed_update takes one gate for each of the {len(routed.cores)} cores, "
            f"got {shown}; what differs from token to token is no single update, so "
            "give gates, such as the mean of jaxmerge.models.token_gates"
        )
    core = linalg.einsum("t,tpq->pq", found, routed.cores)
    return core_update(core, routed.basis)
