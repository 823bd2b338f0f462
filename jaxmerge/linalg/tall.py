"""Tall and wide matrices in float32, decomposed through Gram matrices in float64.

The right singular vectors of x [m, n] are the eigenvectors of ``x^T x``, and the left
ones are ``x v / s``. In the precision of x this loses every singular value below the
root of its epsilon. In float64 a value of ``1e-8 s[0]`` is still found, a hundred times
below what counts as rounding noise in float32 (`rank_tolerance`), and vectors that are
rounded at the end are as orthonormal as float32 can be. All of the work is matrix
multiplication, which a Householder QR is not: on a CPU this takes half of its time.

For CPUs: other devices compute in float64 slowly or not at all. JAX needs not be set to
64 bits, because these functions are in float64 only inside.
"""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import sequential_vmap

from jaxmerge.linalg import lapack
from jaxmerge.linalg.arithmetic import (
    divide,
    keep_directions,
    matmul,
    nonzero_directions,
    rank_tolerance,
    root,
    transpose,
)

Arrays = Any  # one array or several
Triple = tuple[jax.Array, jax.Array, jax.Array]
_DOUBLE = np.dtype(np.float64)
_CONDITION = 1e4  # of x, whose Gram matrix in float64 then has 8 digits to spare
_BLOCK = 1024  # rows or columns that stay in cache in float64


def _of_each_matrix(
    signature: str,
) -> Callable[[Callable[..., Arrays]], Callable[..., Arrays]]:
    """For leading axes and under ``vmap`` too, one matrix after the other.

    Float64 is there while a function is traced. What JAX makes of it later, such as its
    batched version, would lose it: the function is traced again for that.
    """

    def decorate(function: Callable[..., Arrays]) -> Callable[..., Arrays]:
        def with_doubles(*args: jax.Array) -> Arrays:
            with jax.enable_x64(True):
                return function(*args)

        @wraps(function)
        def run(*args: jax.Array) -> Arrays:
            return jnp.vectorize(sequential_vmap(with_doubles), signature=signature)(
                *args
            )

        return run

    return decorate


@_of_each_matrix("(m,n)->(m,n),(n),(n,n)")
def svd_of_tall(x: jax.Array) -> Triple:
    """u [..., m, n], s [..., n], vt [..., n, n] of x [..., m, n] with m > n."""
    v, s, inverse = _directions(_gram_of_columns(x))
    u = _rounded_product(x, v * inverse[..., None, :])
    return u, s.astype(x.dtype), transpose(v).astype(x.dtype)


@_of_each_matrix("(m,n)->(m,m),(m),(m,n)")
def svd_of_wide(x: jax.Array) -> Triple:
    """u [..., m, m], s [..., m], vt [..., m, n] of x [..., m, n] with m < n."""
    u, s, inverse = _directions(_gram_of_rows(x))
    vt = _rows_of(u * inverse[..., None, :], x)
    return u.astype(x.dtype), s.astype(x.dtype), vt


@_of_each_matrix("(m,n)->(m,n),(n,n)")
def column_basis(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """u [..., m, n] and ``u^T x`` [..., n, n] of x [..., m, n] with m > n."""
    gram = _gram_of_columns(x)
    v, _, inverse = _directions(gram)
    to_u = v * inverse[..., None, :]
    return _rounded_product(x, to_u), matmul(transpose(to_u), gram).astype(x.dtype)


@_of_each_matrix("(m,n)->(m,m),(m,n)")
def row_basis(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``x v`` [..., m, m] and vt [..., m, n] of x [..., m, n] with m < n."""
    gram = _gram_of_rows(x)
    u, _, inverse = _directions(gram)
    to_v = u * inverse[..., None, :]
    return matmul(gram, to_v).astype(x.dtype), _rows_of(to_v, x)


@_of_each_matrix("(m,n)->(m,n)")
def polar(x: jax.Array) -> jax.Array:
    """``x (x^T x)^(-1/2)``, or ``(x x^T)^(-1/2) x``."""
    long = x.shape[-2] > x.shape[-1]
    v, _, inverse = _directions(_gram_of_columns(x) if long else _gram_of_rows(x))
    small = matmul(v * inverse[..., None, :], transpose(v))
    return _rounded_product(x, small) if long else _rows_of(small, x)


def svd_of_product(rank: int | None, b: jax.Array, a: jax.Array) -> Arrays:
    """The leading directions of b [..., m, k] a [..., k, n], with k below m and n."""
    of_each = _of_each_matrix("(m,k),(k,n)->(m,d),(d),(d,n)")
    return of_each(partial(_svd_of_product, rank))(b, a)


def _svd_of_product(rank: int | None, b: jax.Array, a: jax.Array) -> Triple:
    """Columns of b are brought to norm 1 first: their sizes belong to the product."""
    gram_b, gram_a = _gram_of_columns(b), _gram_of_rows(a)
    size = root(jnp.diagonal(gram_b, axis1=-2, axis2=-1))
    sizes = size[..., :, None] * size[..., None, :]
    left, to_left = _half(divide(gram_b, sizes))
    right, to_right = _half(gram_a * sizes)
    small = matmul(transpose(left), right).astype(b.dtype)
    u, s, vt = leading(rank, *lapack.thin_svd(small))
    u, s, vt = keep_directions(u, s, vt, nonzero_directions(s))
    to_u = divide(to_left, size[..., :, None])
    to_v = to_right * size[..., :, None]
    u = _rounded_product(b, matmul(to_u, _doubles(u)))
    return u, s, _rows_of(matmul(to_v, _doubles(transpose(vt))), a)


def leading(rank: int | None, u: jax.Array, s: jax.Array, vt: jax.Array) -> Triple:
    """The first directions of a decomposition, all if ``rank`` is None."""
    return u[..., :rank], s[..., :rank], vt[..., :rank, :]


def _directions(gram: jax.Array) -> Triple:
    """Singular vectors, values and 1 / values of what has this Gram matrix.

    In float64, for what was in float32: directions that are rounding noise there are 0.
    """
    squares, v = (jnp.flip(y, axis=-1) for y in lapack.symmetric_eigen(gram))
    s = root(squares)
    kept = ~(s <= rank_tolerance(jnp.float32) * s[..., :1])
    s = jnp.where(kept, s, 0)
    return jnp.where(kept[..., None, :], v, 0), s, divide(1.0, s)


def _half(gram: jax.Array) -> tuple[jax.Array, jax.Array]:
    """h and w, ``gram = h h^T`` and ``x w`` orthonormal, of x with this Gram matrix.

    By Cholesky where float64 holds what it takes, for a third of the time of the
    eigenvectors that it takes elsewhere.
    """
    lower = lax.linalg.cholesky(gram, symmetrize_input=False)
    inverse = lax.linalg.triangular_solve(
        lower, jnp.eye(len(gram), dtype=gram.dtype), left_side=True, lower=True
    )

    def by_directions() -> tuple[jax.Array, jax.Array]:
        v, s, inverse = _directions(gram)
        return v * s[None, :], v * inverse[None, :]

    condition = jnp.linalg.norm(lower) * jnp.linalg.norm(inverse)  # at least that of x
    return lax.cond(
        condition < _CONDITION, lambda: (lower, transpose(inverse)), by_directions
    )


def _doubles(x: jax.Array) -> jax.Array:
    return lax.convert_element_type(x, _DOUBLE)


def _gram_of_rows(x: jax.Array) -> jax.Array:
    """``x x^T`` [..., m, m] of x [..., m, n], in float64."""

    def of_some(columns: jax.Array) -> jax.Array:
        wide = _doubles(columns)
        return matmul(wide, transpose(wide))

    blocks = _blocks_of_columns(x)
    if blocks is None:
        return of_some(x)

    def add(index: jax.Array, so_far: jax.Array) -> jax.Array:
        return so_far + of_some(_taken(blocks, index))

    zero = jnp.zeros((x.shape[0], x.shape[0]), _DOUBLE)
    return lax.fori_loop(0, blocks.shape[1], add, zero)


def _gram_of_columns(x: jax.Array) -> jax.Array:
    """``x^T x`` [..., n, n] of x [..., m, n], in float64.

    Columns are laid out as rows first: XLA multiplies these twice as fast.
    """

    def of_some(rows: jax.Array) -> jax.Array:
        return _gram_of_rows(lax.optimization_barrier(transpose(rows)))

    blocks = _blocks(x)
    if blocks is None:
        return of_some(x)
    zero = jnp.zeros((x.shape[1], x.shape[1]), _DOUBLE)
    return lax.scan(lambda so_far, y: (so_far + of_some(y), None), zero, blocks)[0]


def _rounded_product(x: jax.Array, small: jax.Array) -> jax.Array:
    """``x @ small`` [..., m, k] in float64, rounded once to the dtype of x."""

    def of_some(rows: jax.Array) -> jax.Array:
        return matmul(_doubles(rows), small).astype(x.dtype)

    blocks = _blocks(x)
    if blocks is None:
        return of_some(x)
    return lax.map(of_some, blocks).reshape(x.shape[0], small.shape[1])


def _rows_of(small: jax.Array, x: jax.Array) -> jax.Array:
    """``small^T @ x`` [..., k, n] in float64, rounded once to the dtype of x."""
    rows = lax.optimization_barrier(transpose(small))

    def of_some(columns: jax.Array) -> jax.Array:
        return matmul(rows, _doubles(columns)).astype(x.dtype)

    blocks = _blocks_of_columns(x)
    if blocks is None:
        return of_some(x)

    def put(index: jax.Array, so_far: jax.Array) -> jax.Array:
        some = of_some(_taken(blocks, index))
        return lax.dynamic_update_index_in_dim(so_far, some, index, axis=1)

    empty = jnp.zeros((len(rows), *blocks.shape[1:]), x.dtype)
    found = lax.fori_loop(0, blocks.shape[1], put, empty)
    return found.reshape(len(rows), x.shape[1])


def _blocks(x: jax.Array) -> jax.Array | None:
    """A tall matrix in blocks of rows that stay in cache in float64, if it has many."""
    if x.shape[0] % _BLOCK or x.shape[0] == _BLOCK:
        return None
    return x.reshape(-1, _BLOCK, x.shape[1])


def _blocks_of_columns(x: jax.Array) -> jax.Array | None:
    """The same of a wide matrix [m, n]: blocks of columns [m, blocks, columns]."""
    if x.shape[1] % _BLOCK or x.shape[1] == _BLOCK:
        return None
    return x.reshape(x.shape[0], -1, _BLOCK)


def _taken(blocks: jax.Array, index: jax.Array) -> jax.Array:
    return lax.dynamic_index_in_dim(blocks, index, axis=1, keepdims=False)
