"""How many directions the adapters of a module span, and how evenly."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmerge import linalg
from jaxmerge.learning.objectives import effective_rank
from jaxmerge.stacks import concatenate
from jaxmerge.types import AdapterStack


class EffectiveRanks(NamedTuple):
    """Effective ranks of the adapters of one module, each alone and all together.

    Attributes:
      tasks: [T], of each update ``B_t A_t`` as a matrix.
      own_directions: [T], of each task's stack of rank-1 matrices ``vec(b_j a_j^T)``.
      updates: [], of the stack of the T vectors ``vec(B_t A_t)``; at most T.
      directions: [], of the stack of all K vectors ``vec(b_k a_k^T)``; at most K.
    """

    tasks: jax.Array
    own_directions: jax.Array
    updates: jax.Array
    directions: jax.Array


def effective_ranks(stack: AdapterStack) -> EffectiveRanks:
    """Effective ranks of the stacks that TARA compares (arXiv 2603.26299).

    `jaxmerge.effective_rank` of the singular values of each stack. The stacks have rows
    of m n numbers and are never formed. Their singular values are the square roots of
    the eigenvalues of Gram matrices: ``<D_i, D_j> = sum((B_i^T B_j) * (A_i A_j^T))``
    [T, T] for the updates, ``(B^T B) * (A A^T)`` [K, K] for the directions, with B and
    A the factors of all tasks side by side.

    Reproduces TARA's figure of effective rank by layer: ``sum(tasks)``, `directions`
    (LoRA-aware) and `updates` (LoRA-agnostic). The paper's per-task term may be that of
    `tasks` or of `own_directions`; both are given.

    Args:
      stack: T adapters of one module. A task without an adapter has rank 0.

    Returns:
      EffectiveRanks. `tasks` and `updates` depend on the updates alone; the other two
      also on how an update is split into directions (`jaxmerge.balance` fixes that).

    Cost: O((m + n) K^2 + K^3). Eigenvalues of a Gram matrix up to 16 eps of the largest
    count as zero: in float32 singular values below 0.0014 of the largest.

    >>> from jaxmerge.stacks import stack_adapters
    >>> one = ([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]])
    >>> found = effective_ranks(stack_adapters([one, one]))
    >>> print(found.tasks.round(3), found.updates.round(3), found.directions.round(3))
    [2. 2.] 1.0 2.0
    """
    return effective_ranks_of(stack, linalg.svd_of_product(stack.b, stack.a)[1])


def effective_ranks_of(stack: AdapterStack, spectra: jax.Array) -> EffectiveRanks:
    """`effective_ranks`, with the singular values [T, k] of every update at hand."""
    both = concatenate(stack)
    own = linalg.einsum("tmr,tms->trs", stack.b, stack.b) * linalg.einsum(
        "trn,tsn->trs", stack.a, stack.a
    )
    every = linalg.matmul(both.b.T, both.b) * linalg.matmul(both.a, both.a.T)
    ranks_of = jax.vmap(effective_rank)
    return EffectiveRanks(
        tasks=ranks_of(spectra),
        own_directions=ranks_of(_values_of_gram(own)),
        updates=effective_rank(_values_of_gram(task_gram(stack))),
        directions=effective_rank(_values_of_gram(every)),
    )


def task_gram(stack: AdapterStack) -> jax.Array:
    """Inner products ``<B_i A_i, B_j A_j>`` of all pairs of updates, [T, T].

    >>> from jaxmerge.stacks import stack_adapters
    >>> print(task_gram(stack_adapters([([[3.0]], [[1.0]]), ([[-1.0]], [[2.0]])])))
    [[ 9. -6.]
     [-6.  4.]]
    """
    gram_b = linalg.einsum("imr,jms->ijrs", stack.b, stack.b)
    gram_a = linalg.einsum("irn,jsn->ijrs", stack.a, stack.a)
    return jnp.sum(gram_b * gram_a, axis=(2, 3))


def energy_kept(values: jax.Array) -> jax.Array:
    """Share of the squared Frobenius norm that truncation at each rank keeps.

    ``sum_{j<=k} s_j^2 / sum_j s_j^2`` for k = 1, 2, ..; what TARA, TSV-M and CtM (arXiv
    2412.00081, 2606.03723) plot to show that few directions hold most of an update.

    Args:
      values: singular values [..., k] in descending order.

    Returns:
      [..., k]; 1 where all values are zero, as nothing is lost.

    >>> print(energy_kept(jnp.array([4.0, 4.0, 0.0])))
    [0.5 1.  1. ]
    """
    energy = jnp.cumsum(values * values, axis=-1)
    total = energy[..., -1:]
    return jnp.where(total > 0, energy / jnp.where(total > 0, total, 1), 1)


def stable_rank(values: jax.Array) -> jax.Array:
    """``sum(s^2) / max(s)^2`` of singular values [k]; 0 where all are zero.

    >>> print(stable_rank(jnp.array([2.0, 1.0, 1.0])))
    1.5
    """
    scaled = linalg.divide(values, jnp.max(values))
    return jnp.sum(scaled * scaled)


def condition_number(values: jax.Array) -> jax.Array:
    """Largest over smallest singular value.

    Args:
      values: all singular values [k] of a matrix, in descending order.

    Returns:
      At least 1; infinite where the smallest is rounding noise, as the matrix then
      lacks full rank.

    >>> print(condition_number(jnp.array([6.0, 3.0])))
    2.0
    >>> print(condition_number(jnp.array([6.0, 3.0, 0.0])))
    inf
    """
    full = linalg.nonzero_directions(values)[-1]
    return jnp.where(full, values[0] / jnp.where(full, values[-1], 1), jnp.inf)


def _values_of_gram(gram: jax.Array) -> jax.Array:
    """Singular values of X, descending, from ``X X^T``."""
    energies = jnp.flip(linalg.eigh(gram)[0], axis=-1)
    return linalg.root(jnp.where(linalg.nonzero_directions(energies), energies, 0))
