"""Magnitude trimming: of each task only the largest entries are kept, exactly.

The threshold is found without sorting, with a density that may be traced, and over any
number of arrays: of one module here, of a whole model in `jaxmerge.trim_whole_model`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike

from jaxmerge.doors import check_matrices
from jaxmerge.refusals import Refusal
from jaxmerge.types import RealLike, Rule


def trim(rule: Rule, *, density: RealLike | None) -> Rule:
    """A rule that gets only the largest entries of each task, module by module.

    For one threshold over a whole model see `jaxmerge.trim_whole_model`.

    Args:
      rule: what merges the trimmed matrices.
      density: share of the entries to keep, in (0, 1]; may be traced. None where each
        task has its own: ``densities`` [T], given in the call.

    Returns:
      Rule.

    Raises:
      ValueError: a density outside (0, 1], unless it is traced.

    In a space with null directions their entries do not count (see `Space`).

    Source: TIES, arXiv 2306.01708, step 1. Deviation: exactly
    ``floor(density * size)`` entries are kept; the official code keeps one more.
    """
    if density is not None:
        check_density(density)

    def merge(
        matrices: jax.Array,
        *,
        size: jax.Array | None = None,
        densities: jax.Array | None = None,
        **extra: Any,
    ) -> jax.Array:
        check_matrices(rule, matrices)
        kept = density_of(trim, density, densities)
        return rule(keep_largest(matrices, kept, size=size), size=size, **extra)

    return merge


def keep_largest(
    matrices: jax.Array, density: RealLike, *, size: jax.Array | None = None
) -> jax.Array:
    """Sets all but the largest entries of each task to zero.

    ``floor(density * size)`` entries are kept (see `kept_count`), and all that tie with
    the last one, and every entry that is NaN.

    Args:
      matrices: [T, p, q].
      density: share of the entries to keep, in (0, 1], of all tasks or [T] of each;
        may be traced.
      size: entries that count, p * q unless given; zeros count among them.

    >>> print(keep_largest(jnp.array([[[1.0, -4.0, 2.0, 0.5]]]), 0.5))
    [[[ 0. -4.  2.  0.]]]
    """
    check_matrices(keep_largest, matrices)
    count = kept_count(density, matrices[0].size, size=size)
    return above(matrices, magnitude_threshold([matrices], count))


def above(matrices: jax.Array, threshold: jax.Array) -> jax.Array:
    """Entries whose magnitude reaches the threshold [T] of their task, and NaN."""
    return jnp.where(jnp.abs(matrices) < threshold[:, None, None], 0, matrices)


def kept_count(
    density: RealLike, entries: int, *, size: int | jax.Array | None = None
) -> int | np.ndarray | jax.Array:
    """How many entries a density keeps: ``floor(density * size)`` of the share meant.

    A product that is a whole number up to the rounding of the density (four machine
    epsilons of its dtype) counts as that number: 0.29 of 100 are 29, where floats of
    double precision give 28.999.. So a sweep over traced densities of any precision
    keeps what each of its merges keeps by itself.

    Args:
      density: share to keep, in (0, 1], of all tasks or [T] of each.
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
    if isinstance(density, Tracer):
        return _traced_count(density, entries if size is None else size)
    wide = np.asarray(density, np.float64)
    every = _whole(np, wide * entries, _precision(density))
    every = every.astype(np.int64) if wide.ndim else int(every)
    if size is None:
        return every
    return jnp.where(size == entries, every, _traced_count(density, size))


def check_density(density: RealLike) -> None:
    """Refuses densities outside (0, 1], unless they are traced."""
    if isinstance(density, Tracer):
        return
    shares = np.asarray(density)
    if not ((shares > 0) & (shares <= 1)).all():
        raise ValueError(
            f"density is the share of entries to keep, in (0, 1]; got {density}"
        )


def density_of(
    step: Callable[..., Any], density: RealLike | None, densities: ArrayLike | None
) -> Any:
    """The density that is bound to a step, or those [T] that a call gives.

    Raises:
      Refusal: there is neither, or both.
    """
    if (density is None) == (densities is None):
        found = "neither" if density is None else "both"
        raise Refusal(
            f"{step.__name__} needs the share of entries to keep, as its density or as "
            f"densities=<one for each task> in the call; got {found}"
        )
    return jnp.asarray(densities) if density is None else density


def magnitude_threshold(blocks: Sequence[jax.Array], count: ArrayLike) -> jax.Array:
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
    if hasattr(blocks, "shape") or not blocks:
        raise Refusal(
            "magnitude_threshold takes a list of arrays [T, ...], at least one; put "
            "one array into a list"
        )
    for block in blocks:
        if block.shape[:1] != blocks[0].shape[:1] or block.dtype != blocks[0].dtype:
            raise Refusal(
                "magnitude_threshold takes arrays [T, ...] of one T and dtype, got "
                f"{block.dtype} {block.shape} beside {blocks[0].dtype} "
                f"{blocks[0].shape}"
            )
    if len(blocks) > 1:
        return _bisect(blocks, count)
    return _bisect_each(blocks[0], count)


@jax.jit
def _bisect_each(block: jax.Array, count: ArrayLike) -> jax.Array:
    """`_bisect` of one array; on a CPU task by task, so that a task stays in cache."""
    count = jnp.broadcast_to(count, block.shape[:1])

    def one_by_one(block: jax.Array, count: jax.Array) -> jax.Array:
        return lax.map(lambda x: _bisect([x[0][None]], x[1][None])[0], (block, count))

    def together(block: jax.Array, count: jax.Array) -> jax.Array:
        return _bisect([block], count)

    return lax.platform_dependent(block, count, cpu=one_by_one, default=together)


@jax.jit
def _bisect(blocks: Sequence[jax.Array], count: ArrayLike) -> jax.Array:
    dtype = blocks[0].dtype
    pattern = jnp.int64 if jnp.finfo(dtype).bits == 64 else jnp.int32
    count_dtype = counter()
    size = sum(block[0].size for block in blocks)
    if size > jnp.iinfo(count_dtype).max:
        raise ValueError(
            f"{size} entries cannot be counted in {count_dtype}; set jax_enable_x64"
        )
    patterns = [
        lax.bitcast_convert_type(jnp.abs(lax.stop_gradient(block)), pattern)
        for block in blocks
    ]
    count = jnp.asarray(count).astype(count_dtype)

    def halve(
        _: Any, bounds: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
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


def counter() -> np.dtype:
    """The dtype of the widest integer that JAX is set to use."""
    return jax.dtypes.canonicalize_dtype(jnp.int64)


def _count_from(bound: jax.Array, values: jax.Array) -> jax.Array:
    """How many values [T, ...] of each task reach its bound [T].

    Rows are counted in floats, which a CPU adds up three times as fast as integers.
    """
    reached = jax.vmap(jnp.greater_equal)(values, bound)
    if reached.shape[-1] > 2 ** jnp.finfo(jnp.float32).nmant:
        rows = jnp.sum(reached, axis=-1, dtype=counter())
    else:
        rows = jnp.sum(reached.astype(jnp.bfloat16), axis=-1, dtype=jnp.float32)
    return jnp.sum(rows.astype(counter()), axis=range(1, rows.ndim))


def _traced_count(density: RealLike, size: int | jax.Array) -> jax.Array:
    dtype = jnp.result_type(float)
    product = jnp.asarray(density, dtype) * jnp.asarray(size).astype(dtype)
    return _whole(jnp, product, max(_precision(density), float(jnp.finfo(dtype).eps)))


def _whole(numpy: Any, product: Any, precision: float) -> Any:
    """``floor(product)``, or the whole number that it is up to rounding."""
    return numpy.minimum(
        numpy.round(product), numpy.floor(product * (1 + 4 * precision))
    )


def _precision(density: RealLike) -> float:
    """Machine epsilon of the dtype of a density."""
    dtype = getattr(density, "dtype", np.float64)
    floating = jnp.issubdtype(dtype, jnp.floating)
    return float(jnp.finfo(dtype if floating else np.float64).eps)
