"""TIES (arXiv 2306.01708) and its relatives: a sign is elected for every entry.

"TIES" names at least five algorithms. Here it is made of steps, so that each of them is
one composition: trim entries (`jaxmerge.trim`), elect a sign for every entry
(`sign_of_sum`, `sign_of_count`), combine the values that agree (`mean_of_agreeing`,
`sum_of_agreeing`, `largest_of_agreeing`).

Tasks are few, so they are treated one by one, and added with Python's ``sum``: XLA
then fuses everything from the entries of the tasks to the merged ones, while a
reduction over the leading axis is a pass of its own, and an array of all tasks that is
used twice is written to memory, in a sweep once for each of its points.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp

from jaxmerge.doors import check_matrices
from jaxmerge.mergers.thresholds import counter
from jaxmerge.mergers.trim import density_of, keep_largest
from jaxmerge.types import RealLike

Sign = Callable[[jax.Array], jax.Array]  # [T, p, q] -> [p, q] in {-1, 0, 1}
Combine = Callable[[jax.Array], jax.Array]  # [T, p, q] -> [p, q]


def sign_of_sum(matrices: jax.Array) -> jax.Array:
    """Sign of the sum over tasks, of each entry; where it is 0, the majority's sign.

    The majority is the sign of the sum of all elected signs, as in the official code.

    >>> print(sign_of_sum(jnp.array([[[3.0, -1.0]], [[-1.0, -1.0]]])))
    [[ 1. -1.]]
    """
    check_matrices(sign_of_sum, matrices)
    signs = jnp.sign(sum(matrices))
    majority = jnp.sign(jnp.sum(signs.astype(counter())))
    return jnp.where(signs == 0, majority.astype(signs.dtype), signs)


def sign_of_count(matrices: jax.Array) -> jax.Array:
    """The sign that more tasks have, of each entry; + where as many have either.

    >>> print(sign_of_count(jnp.array([[[3.0]], [[-1.0]], [[-1.0]]])))
    [[-1.]]
    """
    check_matrices(sign_of_count, matrices)
    votes = sum(jnp.sign(matrices))
    return jnp.where(votes >= 0, 1, -1).astype(matrices.dtype)


def mean_of_agreeing(matrices: jax.Array) -> jax.Array:
    """The disjoint mean: sum over tasks divided by the number of non-zero entries."""
    check_matrices(mean_of_agreeing, matrices)
    count = sum((x != 0).astype(matrices.dtype) for x in matrices)
    return sum(matrices) / jnp.maximum(count, 1)


def sum_of_agreeing(matrices: jax.Array) -> jax.Array:
    """The disjoint sum: the sum over tasks of the values that agree."""
    check_matrices(sum_of_agreeing, matrices)
    return sum(matrices, jnp.zeros((), matrices.dtype))


def largest_of_agreeing(matrices: jax.Array) -> jax.Array:
    """The entry of largest magnitude among the tasks.

    >>> print(largest_of_agreeing(jnp.array([[[1.0, -1.0]], [[3.0, -2.0]]])))
    [[ 3. -2.]]
    """
    check_matrices(largest_of_agreeing, matrices)
    largest, smallest = reduce(jnp.maximum, matrices), reduce(jnp.minimum, matrices)
    return jnp.where(largest >= -smallest, largest, smallest)


def elect(
    matrices: jax.Array,
    *,
    sign: Sign = sign_of_sum,
    combine: Combine = mean_of_agreeing,
    **extra: Any,
) -> jax.Array:
    """Elects a sign for each entry and combines the values that have it.

    Args:
      matrices: [T, p, q].
      sign: elects the signs, [T, p, q] -> [p, q].
      combine: merges the agreeing values, the others being 0: [T, p, q] -> [p, q].

    Returns:
      [p, q].

    Source: TIES, arXiv 2306.01708, steps 2 and 3. Deviation: where even the majority
    is 0 nothing agrees and the result is 0; the official code takes the negative
    values there, which makes it depend on a global change of sign.

    >>> print(elect(jnp.array([[[1.0, 2.0]], [[3.0, -5.0]]])))
    [[ 2. -5.]]
    """
    check_matrices(elect, matrices, extra)
    signs = sign(matrices)
    kept = [jnp.where((x * signs <= 0) & jnp.isfinite(x), 0, x) for x in matrices]
    return combine(jnp.stack(kept))


def ties(
    matrices: jax.Array,
    *,
    density: RealLike | None,
    sign: Sign = sign_of_sum,
    combine: Combine = mean_of_agreeing,
    size: jax.Array | None = None,
    densities: jax.Array | None = None,
    **extra: Any,
) -> jax.Array:
    """TIES-Merging (arXiv 2306.01708): trim, elect, disjoint mean.

    ``trim(elect, density=density)`` under its own name. Of each task the entries of
    largest magnitude are kept, for each entry the sign of the sum over tasks is
    elected, and the kept values of that sign are averaged. docs/ties.md has the
    variants of other tools as compositions.

    Args:
      matrices: [T, p, q].
      density: share of the entries to keep, in (0, 1]; may be traced. Of each module:
        for one threshold over a whole model see `jaxmerge.trim_whole_model`.
      sign: elects the signs, [T, p, q] -> [p, q]: `sign_of_sum` or `sign_of_count`.
      combine: merges the agreeing values, the others being 0: `mean_of_agreeing`,
        `sum_of_agreeing` or `largest_of_agreeing`.
      size: entries that count, p * q unless given; spaces with null directions give it.
      densities: [T], share of each task, where ``density`` is None.

    Returns:
      [p, q]. The usual lambda is `jaxmerge.scale`.

    Raises:
      ValueError: a density outside (0, 1], unless it is traced.

    Cost: O(T p q) for each bit of the dtype; no sort.

    Deviations: see `trim` and `elect`.

    >>> print(ties(jnp.array([[[1.0, 4.0]], [[3.0, -5.0]]]), density=0.5))
    [[ 0. -5.]]
    """
    check_matrices(ties, matrices, extra)
    kept = density_of(ties, density, densities)
    trimmed = keep_largest(matrices, kept, size=size)
    return elect(trimmed, sign=sign, combine=combine)
