"""How far the adapters of a module write to, and read from, the same subspaces."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxmerge import linalg
from jaxmerge.types import AdapterStack


class Overlaps(NamedTuple):
    """Overlap of every pair of tasks, and what random subspaces would give.

    Attributes:
      b: [T, T], of the column spaces of B (outputs).
      a: [T, T], of the row spaces of A (inputs).
      random_b: [T, T], expectation for random subspaces of the same ranks.
      random_a: [T, T].
    """

    b: jax.Array
    a: jax.Array
    random_b: jax.Array
    random_a: jax.Array


def overlaps(stack: AdapterStack) -> Overlaps:
    """Overlap of the column spaces of B and of the row spaces of A, pair by pair.

    ``O_ij = ||Q_i^T Q_j||_F^2 / min(r_i, r_j)`` in [0, 1], where Q_t is an orthonormal
    basis of the columns of B_t (rows of A_t) and r_t its numerical rank: 1 if one space
    contains the other, 0 if they are orthogonal. At equal ranks it is the overlap of
    Pico (arXiv 2604.16826), whose figures compare B with A by pair and by layer.

    Random subspaces of dimension d have ``E ||Q_i^T Q_j||_F^2 = r_i r_j / d``, hence
    ``E O_ij = max(r_i, r_j) / d``, with d = m for B and d = n for A.

    Args:
      stack: T adapters of one module.

    Returns:
      Overlaps, with a diagonal of 1. Where a task has no adapter, or one that is zero,
      all entries are 0. Invariant to the gauge ``(B_t C, C^-1 A_t)`` for factors of
      full rank, and to scales.

    Cost: O((m + n) K^2).

    >>> from jaxmerge.stacks import stack_adapters
    >>> x, y = [[1.0], [0.0]], [[1.0], [1.0]]
    >>> found = overlaps(stack_adapters([(x, [[1.0]]), (y, [[1.0]])]))
    >>> print(found.b[0, 1].round(3), found.random_b[0, 1])
    0.5 0.5
    """
    return overlaps_within(stack, stack.b.shape[1], stack.a.shape[2])


def overlaps_within(stack: AdapterStack, m: ArrayLike, n: ArrayLike) -> Overlaps:
    """`overlaps` of adapters in coordinates of subspaces of m outputs and n inputs."""
    b, larger_b = shared_columns(stack.b)
    a, larger_a = shared_columns(linalg.transpose(stack.a))
    return Overlaps(b=b, a=a, random_b=larger_b / m, random_a=larger_a / n)


def above_random(overlap: jax.Array, random: jax.Array) -> jax.Array:
    """``(overlap - random) / (1 - random)``: 0 at chance, 1 for equal subspaces.

    Makes overlaps in spaces of different dimensions comparable; 0 where random
    subspaces always meet (``random >= 1``).

    >>> print(above_random(jnp.array([0.1, 0.55]), jnp.array([0.1, 0.1])).round(3))
    [0.  0.5]
    """
    return linalg.divide(overlap - random, 1 - random)


def shared_columns(matrices: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Overlaps of the column spaces of [T, d, r], and the larger ranks of the pairs.

    Both are [T, T], and 0 where a space has no directions.
    """
    bases, _, _ = linalg.svd(matrices)
    cross = linalg.einsum("idr,jds->ijrs", bases, bases)
    shared = jnp.sum(cross * cross, axis=(2, 3))
    ranks = jnp.round(jnp.sum(bases * bases, axis=(1, 2)))
    smaller = jnp.minimum(ranks[:, None], ranks[None, :])
    larger = jnp.maximum(ranks[:, None], ranks[None, :])
    found = linalg.divide(shared, smaller)
    return found, jnp.where(smaller > 0, larger, 0)
