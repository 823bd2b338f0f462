"""Products and quotients of matrices: precision, zeros, and what counts as rounding."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike

ORDINARY = 20  # exponents within which squares and products stay in range
_HIGHEST = lax.Precision.HIGHEST


def einsum(spec: str, *operands: jax.Array) -> jax.Array:
    """``jnp.einsum`` at the highest precision of the device."""
    return jnp.einsum(spec, *operands, precision=_HIGHEST)


def matmul(x: jax.Array, y: jax.Array) -> jax.Array:
    """``x @ y`` at the highest precision of the device."""
    return jnp.matmul(x, y, precision=_HIGHEST)


def transpose(x: jax.Array) -> jax.Array:
    """Swaps the last two axes."""
    return jnp.swapaxes(x, -1, -2)


def divide(x: ArrayLike, y: jax.Array) -> jax.Array:
    """``x / y``, and 0 where y is 0, with finite derivatives; NaN in y stays visible.

    >>> print(divide(1.0, jnp.array([2.0, 0.0, jnp.nan])))
    [0.5 0.  nan]
    """
    empty = y == 0
    return jnp.where(empty, 0, x / jnp.where(empty, 1, y))


def root(x: jax.Array) -> jax.Array:
    """Square root of max(x, 0), with derivative 0 instead of infinity at 0."""
    empty = x <= 0  # false for NaN
    return jnp.where(empty, 0, jnp.sqrt(jnp.where(empty, 1, x)))


def unit_power(x: jax.Array) -> jax.Array:
    """The power of two that brings the largest magnitude of an array near to 1.

    It is 1 where that magnitude is ordinary, between ``2 ** -20`` and ``2 ** 20``, so
    that what is multiplied by it keeps its bits; and for zeros and what is not finite.

    >>> unit_power(jnp.array([3.0])).item(), unit_power(jnp.array([2.0**-50])).item()
    (1.0, 1125899906842624.0)
    """
    peak = lax.stop_gradient(jnp.max(jnp.abs(x), initial=0))
    exponent = jnp.frexp(peak)[1] - 1
    ordinary = (jnp.abs(exponent) <= ORDINARY) | (peak == 0) | ~jnp.isfinite(peak)
    largest = jnp.finfo(x.dtype).maxexp - 2
    moved = jnp.clip(jnp.where(ordinary, 0, -exponent), -largest, largest)
    return jnp.ldexp(jnp.ones((), x.dtype), moved)


def rank_tolerance(dtype: DTypeLike) -> float:
    """Singular values up to this share of the largest one count as zero."""
    return 16.0 * float(jnp.finfo(dtype).eps)


def nonzero_directions(values: jax.Array) -> jax.Array:
    """Which singular values, in descending order, are above rounding noise, or NaN."""
    return ~(values <= rank_tolerance(values.dtype) * values[..., :1])


def keep_directions(
    u: jax.Array, s: jax.Array, vt: jax.Array, keep: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sets the directions [..., k] that are not kept to zero, values and vectors."""
    return (
        jnp.where(keep[..., None, :], u, 0),
        jnp.where(keep, s, 0),
        jnp.where(keep[..., :, None], vt, 0),
    )
