"""Magnitude trimming: of each task only the largest entries are kept, exactly.

The threshold is found without sorting, with a density that may be traced, and over any
number of arrays: of one module here, of a whole model in `jaxmerge.trim_whole_model`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from jaxmerge.doors import check_matrices
from jaxmerge.mergers.thresholds import magnitude_threshold
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
    # task by task, as in `jaxmerge.mergers.ties`: the one array is then never made
    pairs = zip(matrices, threshold, strict=True)
    return jnp.stack([jnp.where(jnp.abs(x) < least, 0, x) for x, least in pairs])


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
