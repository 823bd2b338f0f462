"""Sign election and magnitude trimming: TIES (arXiv 2306.01708) and its relatives.

"TIES" names at least five algorithms. Here it is made of steps, so that each of them is
one composition: trim entries (`trim`), elect a sign for every entry (`sign_of_sum`,
`sign_of_count`), combine the values that agree (`mean_of_agreeing`,
`sum_of_agreeing`, `largest_of_agreeing`).

Tasks are few, so they are added one by one with Python's ``sum``: XLA then fuses the
additions with what comes before and after, while a reduction over the leading axis is
a pass of its own, and on a CPU with several threads a slow one.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxmerge.types import Rule

Sign = Callable[[jax.Array], jax.Array]  # [T, p, q] -> [p, q] in {-1, 0, 1}
Combine = Callable[[jax.Array], jax.Array]  # [T, p, q] -> [p, q]


def sign_of_sum(matrices: jax.Array) -> jax.Array:
    """Sign of the sum over tasks, of each entry; where it is 0, the majority's sign.

    The majority is the sign of the sum of all elected signs, as in the official code.

    >>> print(sign_of_sum(jnp.array([[[3.0, -1.0]], [[-1.0, -1.0]]])))
    [[ 1. -1.]]
    """
    signs = jnp.sign(sum(matrices))
    majority = jnp.sign(jnp.sum(signs.astype(_counter())))
    return jnp.where(signs == 0, majority.astype(signs.dtype), signs)


def sign_of_count(matrices: jax.Array) -> jax.Array:
    """The sign that more tasks have, of each entry; + where as many have either.

    >>> print(sign_of_count(jnp.array([[[3.0]], [[-1.0]], [[-1.0]]])))
    [[-1.]]
    """
    votes = sum(jnp.sign(matrices))
    return jnp.where(votes >= 0, 1, -1).astype(matrices.dtype)


def mean_of_agreeing(matrices: jax.Array) -> jax.Array:
    """The disjoint mean: sum over tasks divided by the number of non-zero entries."""
    count = jnp.sum(matrices != 0, axis=0)
    return sum(matrices) / jnp.maximum(count, 1).astype(matrices.dtype)


def sum_of_agreeing(matrices: jax.Array) -> jax.Array:
    """The disjoint sum."""
    return sum(matrices)


def largest_of_agreeing(matrices: jax.Array) -> jax.Array:
    """The entry of largest magnitude among the tasks.

    >>> print(largest_of_agreeing(jnp.array([[[1.0, -1.0]], [[3.0, -2.0]]])))
    [[ 3. -2.]]
    """
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
    outvoted = matrices * sign(matrices)[None] <= 0
    return combine(jnp.where(outvoted & jnp.isfinite(matrices), 0, matrices))


def kept_count(
    density: ArrayLike, entries: int, *, size: jax.Array | None = None
) -> int | jax.Array:
    """How many entries a density keeps: ``floor(density * size)`` of the share meant.

    A product that is a whole number up to the rounding of the density (four machine
    epsilons of its dtype) counts as that number: 0.29 of 100 are 29, where floats of
    double precision give 28.999.. So a sweep over traced densities of any precision
    keeps what each of its merges keeps by itself.

    Args:
      density: share to keep, in (0, 1].
      entries: how many there are.
      size: how many of them are no null directions (see `Space`); all unless given.

    Returns:
      A Python number of entries if the density is not traced and all entries count.

    Raises:
      ValueError: a density outside (0, 1], unless it is traced.

    >>> kept_count(0.29, 100), int(0.29 * 100)
    (29, 28)
    """
    check_density(density)
    if isinstance(density, jax.core.Tracer):
        return _traced_count(density, entries if size is None else size)
    every = int(_whole(np, np.float64(density) * entries, _precision(density)))
    if size is None:
        return every
    return jnp.where(size == entries, every, _traced_count(density, size))


def _traced_count(density, size):
    dtype = jnp.result_type(float)
    product = jnp.asarray(density, dtype) * jnp.asarray(size).astype(dtype)
    return _whole(jnp, product, max(_precision(density), float(jnp.finfo(dtype).eps)))


def _whole(numpy, product, precision):
    """``floor(product)``, or the whole number that it is up to rounding."""
    return numpy.minimum(
        numpy.round(product), numpy.floor(product * (1 + 4 * precision))
    )


def _precision(density):
    """Machine epsilon of a density."""
    dtype = getattr(density, "dtype", np.float64)
    floating = jnp.issubdtype(dtype, jnp.floating)
    return float(jnp.finfo(dtype if floating else np.float64).eps)


def check_density(density: ArrayLike) -> None:
    """Refuses a density outside (0, 1], unless it is traced."""
    if not isinstance(density, jax.core.Tracer) and not 0 < float(density) <= 1:
        raise ValueError(
            f"density is the share of entries to keep, in (0, 1]; got {density}"
        )


@jax.jit
def magnitude_threshold(blocks: list[jax.Array], count: ArrayLike) -> jax.Array:
    """The ``count``-th largest magnitude over all blocks of each task, exactly.

    Non-negative floats are ordered as their bit patterns are, so the threshold is found
    by bisection over integers: one pass over the data for each bit, no sort, no
    reshape, and no gather where the blocks are spread over devices.

    Args:
      blocks: arrays [T, ...] of one dtype.
      count: how many entries to keep, at least 0; may be traced.

    Returns:
      [T]; keeping ``abs(x) >= threshold`` keeps count entries, and all that tie with
      the last. Infinite where count is 0. NaN counts as infinite.

    >>> print(magnitude_threshold([jnp.array([[1.0, -4.0, 2.0]])], 2))
    [2.]
    """
    dtype = blocks[0].dtype
    pattern = jnp.int64 if jnp.finfo(dtype).bits == 64 else jnp.int32
    counter = _counter()
    size = sum(block[0].size for block in blocks)
    if size > jnp.iinfo(counter).max:
        raise ValueError(
            f"{size} entries cannot be counted in {counter}; set jax_enable_x64"
        )
    patterns = [
        lax.bitcast_convert_type(jnp.abs(lax.stop_gradient(block)), pattern)
        for block in blocks
    ]
    count = jnp.asarray(count).astype(counter)

    def halve(_, bounds):
        low, high = bounds  # at least count entries are >= low; fewer are >= high
        middle = low + (high - low) // 2
        enough = sum(_count_from(middle, x) for x in patterns) >= count
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    infinity = lax.bitcast_convert_type(jnp.asarray(jnp.inf, dtype), pattern)
    low = jnp.zeros(blocks[0].shape[0], pattern)
    high = jnp.full_like(low, infinity + 1)
    low, _ = lax.fori_loop(0, jnp.finfo(dtype).bits - 1, halve, (low, high))
    threshold = lax.bitcast_convert_type(low, dtype)
    return jnp.where(count > 0, threshold, jnp.inf)


def _counter():
    """The widest integer that JAX is set to use."""
    return jax.dtypes.canonicalize_dtype(jnp.int64)


def _count_from(bound, values):
    """How many values [T, ...] of each task reach its bound [T].

    Rows are counted in floats, which a CPU adds up three times as fast as integers.
    """
    reached = jax.vmap(jnp.greater_equal)(values, bound)
    if reached.shape[-1] > 2 ** jnp.finfo(jnp.float32).nmant:
        rows = jnp.sum(reached, axis=-1, dtype=_counter())
    else:
        rows = jnp.sum(reached.astype(jnp.bfloat16), axis=-1, dtype=jnp.float32)
    return jnp.sum(rows.astype(_counter()), axis=range(1, rows.ndim))


def keep_largest(
    matrices: jax.Array, density: ArrayLike, *, size: jax.Array | None = None
) -> jax.Array:
    """Sets all but the largest entries of each task to zero.

    ``floor(density * size)`` entries are kept (see `kept_count`), and all that tie with
    the last one, and every entry that is NaN.

    Args:
      matrices: [T, p, q].
      density: share of the entries to keep, in (0, 1]; may be traced.
      size: entries that count, p * q unless given; zeros count among them.

    >>> print(keep_largest(jnp.array([[[1.0, -4.0, 2.0, 0.5]]]), 0.5))
    [[[ 0. -4.  2.  0.]]]
    """
    count = kept_count(density, matrices[0].size, size=size)
    return above(matrices, magnitude_threshold([matrices], count))


def above(matrices: jax.Array, threshold: jax.Array) -> jax.Array:
    """Entries whose magnitude reaches the threshold [T] of their task, and NaN."""
    return jnp.where(jnp.abs(matrices) < threshold[:, None, None], 0, matrices)


def trim(rule: Rule, *, density: ArrayLike) -> Rule:
    """A rule that sees only the largest entries of each task, module by module.

    For one threshold over a whole model see `jaxmerge.trim_whole_model`.

    Args:
      rule: what merges the trimmed matrices.
      density: share of the entries to keep, in (0, 1]; may be traced.

    Returns:
      Rule.

    Raises:
      ValueError: a density outside (0, 1], unless it is traced.

    In a space with null directions their entries do not count (see `Space`).

    Source: TIES, arXiv 2306.01708, step 1. Deviation: exactly
    ``floor(density * size)`` entries are kept; the official code keeps one more.
    """
    check_density(density)

    def merge(
        matrices: jax.Array, *, size: jax.Array | None = None, **extra: Any
    ) -> jax.Array:
        return rule(keep_largest(matrices, density, size=size), size=size, **extra)

    return merge


def ties(
    matrices: jax.Array,
    *,
    density: ArrayLike,
    sign: Sign = sign_of_sum,
    combine: Combine = mean_of_agreeing,
    size: jax.Array | None = None,
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

    Returns:
      [p, q]. The usual lambda is `jaxmerge.scale`.

    Raises:
      ValueError: a density outside (0, 1], unless it is traced.

    Cost: O(T p q) for each bit of the dtype; no sort.

    Deviations: see `trim` and `elect`.

    >>> print(ties(jnp.array([[[1.0, 4.0]], [[3.0, -5.0]]]), density=0.5))
    [[ 0. -5.]]
    """
    trimmed = keep_largest(matrices, density, size=size)
    return elect(trimmed, sign=sign, combine=combine)
