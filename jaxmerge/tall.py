"""Tall matrices in float32, decomposed through Gram matrices in float64.

The right singular vectors of x [m, n] are the eigenvectors of ``x^T x``, and the left
ones are ``x v / s``. In the precision of x this loses every singular value below the
root of its epsilon. In float64 a value of ``1e-8 s[0]`` is still found, hundred times
below what counts as rounding noise in float32 (`jaxmerge.linalg.rank_tolerance`), and
what is rounded at the end is as orthonormal as float32 can be. Both products run at the
speed of matrix multiplication, which a Householder QR does not: on a CPU this takes half
of its time or less.

For CPUs: other devices compute in float64 slowly or not at all. JAX needs not be set to
64 bits, because these functions are in float64 only inside.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

DOUBLE = np.dtype(np.float64)
_ROWS = 1024
_HIGHEST = lax.Precision.HIGHEST


def doubles(x: jax.Array) -> jax.Array:
    """The same values in float64, whatever JAX is set to."""
    with jax.enable_x64(True):
        return lax.convert_element_type(x, DOUBLE)


def product(x: jax.Array, y: jax.Array) -> jax.Array:
    """``x @ y`` in float64."""
    with jax.enable_x64(True):
        return jnp.matmul(doubles(x), doubles(y), precision=_HIGHEST)


def gram_of_rows(x: jax.Array) -> jax.Array:
    """``x x^T`` [..., m, m] of x [..., m, n], in float64."""
    return product(x, jnp.swapaxes(x, -1, -2))


def gram_of_columns(x: jax.Array) -> jax.Array:
    """``x^T x`` [..., n, n] of x [..., m, n], in float64.

    Columns are laid out as rows first: XLA multiplies these twice as fast.
    """

    def of_some(rows: jax.Array) -> jax.Array:
        return gram_of_rows(lax.optimization_barrier(jnp.swapaxes(rows, -1, -2)))

    blocks = _blocks(x)
    if blocks is None:
        return of_some(x)
    with jax.enable_x64(True):
        zero = jnp.zeros((x.shape[1], x.shape[1]), DOUBLE)
        return lax.scan(lambda so_far, y: (so_far + of_some(y), None), zero, blocks)[0]


def rounded_product(x: jax.Array, small: jax.Array) -> jax.Array:
    """``x @ small`` [..., m, k] in float64, rounded once to the dtype of x."""

    def of_some(rows: jax.Array) -> jax.Array:
        return product(rows, small).astype(x.dtype)

    blocks = _blocks(x)
    if blocks is None:
        return of_some(x)
    with jax.enable_x64(True):
        return lax.map(of_some, blocks).reshape(x.shape[0], small.shape[1])


def _blocks(x: jax.Array) -> jax.Array | None:
    """A tall matrix in blocks of rows that stay in cache in float64, if it has many."""
    if x.ndim != 2 or x.shape[0] % _ROWS or x.shape[0] == _ROWS:
        return None
    return x.reshape(-1, _ROWS, x.shape[1])
