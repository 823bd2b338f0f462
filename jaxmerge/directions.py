"""Learned coefficients on directions: TARA-A, TARA-B and AdaMerging.

A `Learned` method keeps everything that needs a decomposition in ``prepare``, so that
``apply`` is cheap and differentiable in the coefficients phi, the only thing that is
fitted. All coefficients equal to c give c times task arithmetic, whatever the method.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmerge import linalg
from jaxmerge.linear import concatenate
from jaxmerge.spaces import project_knots
from jaxmerge.types import AdapterStack, Learned, LowRank


class Directions(NamedTuple):
    """``sum_k phi_k b_k a_k``, phi being expanded to one number for each direction."""

    b: jax.Array  # [m, K]
    a: jax.Array  # [K, n]
    owners: jax.Array  # [K], int: the coefficient that direction k uses


class SharedDirections(NamedTuple):
    """``U sum_t diag(phi_t) C_t A_t``, with the rows of all ``C_t A_t`` on common U."""

    u: jax.Array  # [m, R]
    coordinates: jax.Array  # [R, K], the columns of task t are U^T B_t
    a: jax.Array  # [K, n]
    owners: jax.Array  # [K], int: the task of column k


def tara_a(*, initial: float = 0.4) -> Learned:
    """TARA-Merging, variant A (arXiv 2603.26299): one coefficient for each direction.

    ``D(phi) = sum_t sum_j phi_tj b_tj a_tj^T = B_cat diag(phi) A_cat``, phi of shape
    [K], in the order of the tasks.

    Args:
      initial: every coefficient at the start; 0.4 in the paper.

    Returns:
      Learned. ``apply`` gives a LowRank of rank K at the cost of one product b * phi.

    >>> from jaxmerge.types import stack_adapters
    >>> from jaxmerge.updates import dense
    >>> method = tara_a(initial=0.5)
    >>> basis = method.prepare(stack_adapters([([[2.0]], [[3.0]]), ([[1.0]], [[4.0]])]))
    >>> print(dense(method.apply(method.init(basis), basis)))
    [[5.]]
    """

    def prepare(stack: AdapterStack) -> Directions:
        b, a = concatenate(stack)
        return Directions(b=b, a=a, owners=jnp.arange(a.shape[0]))

    def init(basis: Directions) -> jax.Array:
        return jnp.full(basis.a.shape[0], initial, basis.a.dtype)

    return Learned(prepare, init, _weigh_directions)


def adamerging(*, initial: float = 0.3, clamp: bool = True) -> Learned:
    """AdaMerging (arXiv 2310.02575), layer-wise: one coefficient for each task.

    ``D(phi) = sum_t phi_t B_t A_t``, phi of shape [T'] for the T' tasks that adapt the
    module. Sharing one phi between all modules gives the task-wise variant.

    Args:
      initial: every coefficient at the start; 0.3 in the paper.
      clamp: confine the coefficients to [0, 1], as published; TARA's baseline does not.
    """

    def prepare(stack: AdapterStack) -> Directions:
        b, a = concatenate(stack)
        return Directions(b=b, a=a, owners=_owners(stack))

    def init(basis: Directions) -> jax.Array:
        return jnp.full(int(basis.owners[-1]) + 1, initial, basis.a.dtype)

    def apply(phi: jax.Array, basis: Directions) -> LowRank:
        return _weigh_directions(jnp.clip(phi, 0, 1) if clamp else phi, basis)

    return Learned(prepare, init, apply)


def tara_b(*, initial: float = 0.4) -> Learned:
    """TARA-Merging, variant B: coefficients on shared singular directions.

    With ``U S [V_1^T .. V_T^T]`` the singular value decomposition of the updates side
    by side, ``D(phi) = sum_t U diag(phi_t * s) V_t^T``, phi of shape [T', R] with
    R = min(m, K). As ``S V_t^T = U^T B_t A_t``, the V_t are never formed:
    ``D(phi) = U [phi_1 * (U^T B_1) .. phi_T * (U^T B_T)] A_cat``.

    Args:
      initial: every coefficient at the start; 0.4 in the paper.

    Returns:
      Learned. ``apply`` gives a LowRank of rank R.

    Deviation: the official code fails where K exceeds m; R is min(m, K) here.
    """

    def prepare(stack: AdapterStack) -> SharedDirections:
        _, u = project_knots(stack)
        b, a = concatenate(stack)
        coordinates = linalg.matmul(u.T, b)
        return SharedDirections(
            u=u, coordinates=coordinates, a=a, owners=_owners(stack)
        )

    def init(basis: SharedDirections) -> jax.Array:
        tasks = int(basis.owners[-1]) + 1
        return jnp.full((tasks, basis.u.shape[1]), initial, basis.u.dtype)

    def apply(phi: jax.Array, basis: SharedDirections) -> LowRank:
        core = basis.coordinates * phi[basis.owners].T
        return LowRank(b=basis.u, a=linalg.matmul(core, basis.a))

    return Learned(prepare, init, apply)


def _owners(stack):
    ranks = [stack.ranks[t] for t in stack.present]
    return jnp.repeat(
        jnp.arange(len(ranks)), jnp.asarray(ranks), total_repeat_length=sum(ranks)
    )


def _weigh_directions(phi, basis):
    return LowRank(b=basis.b * phi[basis.owners][None, :], a=basis.a)
