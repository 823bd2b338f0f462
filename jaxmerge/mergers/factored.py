"""Mergers that work on the factors themselves: RobustMerge and LoRA-LEGO."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxmerge import linalg
from jaxmerge.doors import check_stack
from jaxmerge.mergers.trim import keep_largest
from jaxmerge.stacks import concatenate, present_factors, weigh
from jaxmerge.types import AdapterStack, LowRank


def complementary_scales(full: jax.Array, kept: jax.Array) -> jax.Array:
    """How much each row of A lost by trimming: ``sum |A_j| / sum |kept_j|``.

    [..., R, n] twice -> [..., R]; 0 for a row of which nothing is left.
    """
    whole, left = jnp.sum(jnp.abs(full), -1), jnp.sum(jnp.abs(kept), -1)
    return linalg.divide(whole, left)


def robust_merge(
    stack: AdapterStack,
    *,
    density: float = 0.2,
    by: ArrayLike = 2.0,
    weights: ArrayLike | None = None,
    **extra: Any,
) -> LowRank:
    """RobustMerge (arXiv 2502.17159): trim the factors, rescale directions, add.

    Every A_t and B_t keeps its largest entries. Row j of A_t has the scale
    ``s_tj = sum |A_tj| / sum |trimmed A_tj|``, raised to the ``1 - density`` quantile
    of the scales of the task where it is below; then
    ``A = by * sum_t A_t`` and ``B = by * sum_t s_t B_t / sum_t s_t`` by columns.

    Args:
      stack: T adapters of one module.
      density: share of the entries of each factor to keep.
      by: lambda, on both factors, so the update carries its square.
      weights: [T], multiply B_t.

    Returns:
      LowRank of the rank of the adapters. As published it contains the cross terms
      ``B_i A_j``: it is not a function of the updates alone.

    Raises:
      ValueError: mixed ranks, for which the sum of factors has no meaning.
    """
    check_stack(robust_merge, stack, extra)
    if len({stack.ranks[t] for t in stack.present}) > 1:
        raise ValueError(
            f"robust_merge adds factors, so all ranks must be equal; got {stack.ranks}"
        )
    rank = max(stack.ranks)  # padding is neither an entry nor a row
    b, a = present_factors(weigh(stack, weights))
    b, a = b[:, :, :rank], a[:, :rank]
    kept_b, kept_a = keep_largest(b, density), keep_largest(a, density)
    scales = complementary_scales(a, kept_a)
    floor = jnp.quantile(scales, 1 - density, axis=1, keepdims=True)
    scales = jnp.maximum(scales, floor)
    share = linalg.divide(scales, jnp.sum(scales, axis=0, keepdims=True))
    by = jnp.asarray(by, b.dtype)
    return LowRank(
        b=by * jnp.sum(kept_b * share[:, None, :], axis=0),
        a=by * jnp.sum(kept_a, axis=0),
    )


class Units(NamedTuple):
    """The K rank-1 units ``b_j a_j`` of all adapters of one module."""

    b: jax.Array  # [K, m]
    a: jax.Array  # [K, n]


def semantic_units(stack: AdapterStack, *, align: bool = True) -> Units:
    """Every direction of every adapter as one unit, [K, m] and [K, n].

    Args:
      stack: T adapters of one module.
      align: give both halves of a unit the same norm, and the sign with which the
        entry of largest magnitude in ``a`` is positive. ``(a, b)``, ``(-a, -b)`` and
        ``(a c, b / c)`` are one update and then become one unit.
    """
    b, a = concatenate(stack)
    b = b.T
    if not align:
        return Units(b=b, a=a)
    size_b = linalg.root(jnp.sum(b * b, axis=1))
    size_a = linalg.root(jnp.sum(a * a, axis=1))
    nonzero = size_a * size_b > 0
    ratio = jnp.where(nonzero, size_b, 1) / jnp.where(nonzero, size_a, 1)
    peak = jnp.take_along_axis(a, jnp.argmax(jnp.abs(a), axis=1)[:, None], axis=1)
    turn = jnp.where(peak[:, 0] < 0, -1, 1) * jnp.sqrt(ratio)
    return Units(b=b / turn[:, None], a=a * turn[:, None])


@partial(jax.jit, static_argnames="iterations")
def k_means(points: jax.Array, initial: jax.Array, *, iterations: int) -> jax.Array:
    """Lloyd's algorithm: the cluster of each point, [K, d] -> [K].

    Args:
      points: [K, d].
      initial: [k] indices of the points that are the first centres.
      iterations: how often the centres move; an empty cluster keeps its centre.
    """
    norms = jnp.sum(points * points, axis=1)

    def assign(centres: jax.Array) -> jax.Array:
        squares = jnp.sum(centres * centres, axis=1)
        cross = linalg.matmul(points, centres.T)
        return jnp.argmin(norms[:, None] - 2 * cross + squares[None, :], axis=1)

    def move(_: Any, centres: jax.Array) -> jax.Array:
        members = jax.nn.one_hot(assign(centres), centres.shape[0], dtype=points.dtype)
        count = jnp.sum(members, axis=0)[:, None]
        means = linalg.matmul(members.T, points) / jnp.maximum(count, 1)
        return jnp.where(count > 0, means, centres)

    return assign(jax.lax.fori_loop(0, iterations, move, points[initial]))


def assemble_units(units: Units, clusters: jax.Array, rank: int) -> LowRank:
    """One direction for each cluster: the mean unit, at the mean size of its members.

    Size is the largest magnitude in a unit. Empty clusters give zero directions.
    """
    joined = jnp.concatenate([units.a, units.b], axis=1)
    members = jax.nn.one_hot(clusters, rank, dtype=joined.dtype)
    count = jnp.maximum(jnp.sum(members, axis=0), 1)
    centres = linalg.matmul(members.T, joined) / count[:, None]
    sizes = linalg.matmul(members.T, jnp.max(jnp.abs(joined), axis=1)) / count
    peak = jnp.max(jnp.abs(centres), axis=1)
    factor = linalg.divide(sizes, peak)
    centres = centres * factor[:, None]
    n = units.a.shape[1]
    return LowRank(b=centres[:, n:].T, a=centres[:, :n])


def lora_lego(
    stack: AdapterStack,
    *,
    key: jax.Array,
    rank: int | None = None,
    iterations: int = 10,
    align: bool = True,
    weights: ArrayLike | None = None,
    **extra: Any,
) -> LowRank:
    """LoRA-LEGO (arXiv 2409.16167): cluster the rank-1 units of all adapters.

    The K units ``[a_j; b_j]`` are clustered by k-means on unit-norm halves; each
    cluster gives one direction, its mean unit at the mean size of the members; the
    update is multiplied by ``sqrt(K / (T rank))``.

    Args:
      stack: T adapters of one module.
      key: draws the first centres.
      rank: number of clusters and rank of the result; the largest rank unless given.
      iterations: number of iterations of k-means.
      align: see `semantic_units`.
      weights: [T], multiply the updates before.

    Returns:
      LowRank of rank ``rank``.

    Cost: O(iterations K rank (m + n)).

    Deviations: no official code is known and the published description leaves the
    output factor open. Ours keeps one adapter unchanged at ``rank = r``. Units that are
    zero join no cluster of their own weight: their size is 0.
    """
    check_stack(lora_lego, stack, extra)
    units = semantic_units(weigh(stack, weights), align=align)
    total = units.a.shape[0]
    rank = min(rank or max(stack.ranks), total)
    features = jnp.concatenate([_unit_rows(units.a), _unit_rows(units.b)], axis=1)
    initial = jax.random.choice(key, total, (rank,), replace=False)
    clusters = k_means(features, initial, iterations=iterations)
    b, a = assemble_units(units, clusters, rank)
    output = (total / (len(stack.present) * rank)) ** 0.5
    return LowRank(b=b * output, a=a)


def _unit_rows(x: jax.Array) -> jax.Array:
    size = linalg.root(jnp.sum(x * x, axis=1, keepdims=True))
    return linalg.divide(x, size)
