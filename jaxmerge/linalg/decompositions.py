"""Decompositions with null directions set to zero, and with derivatives.

Every function works in the dtype it is given. A direction whose singular value is at
most ``rank_tolerance * s[0]`` is rounding noise: its value is set to 0 and its vectors
to zero vectors, so that no result depends on the vectors that a routine happens to pick
for the null space, and so that padding with zeros changes nothing. Every factor of a
matrix that is not finite is NaN: it must not look like a null space.

Derivatives are finite everywhere: where two singular values coincide their vectors
are not differentiable, but every function that does not depend on the choice of basis
is, and for those the rules below give the true derivative.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxmerge.linalg import lapack, tall
from jaxmerge.linalg.arithmetic import (
    divide,
    keep_directions,
    matmul,
    nonzero_directions,
    rank_tolerance,
    transpose,
)
from jaxmerge.linalg.tall import Triple, leading

Arrays = tuple[jax.Array, ...]
Pair = tuple[jax.Array, jax.Array]


def eigh(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues [..., n], ascending, and vectors [..., n, n] of a symmetric matrix.

    It is meant for statistics, which are data: no derivative passes through it.

    >>> print(eigh(jnp.diag(jnp.array([2.0, 1.0])))[0])
    [1. 2.]
    """
    values, vectors = lapack.symmetric_eigen(jax.lax.stop_gradient(x))
    return values, vectors


def triangle(x: jax.Array) -> jax.Array:
    """``R`` [..., k, n] of ``x = Q R``: the columns of x in coordinates of their span.

    It has their inner products, ``R^T R = x^T x``, at k = min(m, n) numbers for each
    column. No derivative passes through it.

    >>> print(jnp.abs(triangle(jnp.array([[3.0], [4.0]]))))
    [[5.]]
    """
    (found,) = lapack.upper_triangle(jax.lax.stop_gradient(x))
    return found


@jax.custom_jvp
def svd(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Thin singular value decomposition with null directions set to zero.

    ``x = u @ diag(s) @ vt``, with k = min(m, n) directions in descending order.

    Args:
      x: [..., m, n].

    Returns:
      u [..., m, k], s [..., k], vt [..., k, n]. Where ``s`` is 0 the column of ``u``
      and the row of ``vt`` are zero too; the others are orthonormal.

    Cost: O(m n k) through a QR step of the longer side and an SVD of a k x k matrix.

    >>> u, s, vt = svd(jnp.array([[3.0, 0.0], [0.0, 0.0], [0.0, 0.0]]))
    >>> print(s, vt[1])
    [3. 0.] [0. 0.]
    """
    m, n = x.shape[-2:]
    if m > n:
        return _by_platform(x, cpu=tall.svd_of_tall, default=_svd_of_tall)
    if m < n:
        return _by_platform(x, cpu=tall.svd_of_wide, default=_svd_of_wide)
    u, s, vt = lapack.thin_svd(x)
    return keep_directions(u, s, vt, nonzero_directions(s))


def _svd_of_tall(x: jax.Array) -> Triple:
    q, r = lapack.thin_qr(x)
    u, s, vt = lapack.thin_svd(r)
    return keep_directions(matmul(q, u), s, vt, nonzero_directions(s))


def _svd_of_wide(x: jax.Array) -> Triple:
    v, s, ut = _svd_of_tall(transpose(x))
    return transpose(ut), s, transpose(v)


@svd.defjvp
def _svd_jvp(primals: Arrays, tangents: Arrays) -> tuple[Triple, Triple]:
    (x,), (dx,) = primals, tangents
    u, s, vt = svd(x)
    tangent = _svd_tangents(
        u, s, vt, matmul(dx, transpose(vt)), matmul(transpose(dx), u)
    )
    return (u, s, vt), tangent


@jax.custom_jvp
def column_basis(x: jax.Array) -> Pair:
    """An orthonormal basis of the columns of a matrix, and the matrix in it.

    Args:
      x: [..., m, n].

    Returns:
      u [..., m, k], the left singular vectors of `svd`, and c = ``u^T x`` [..., k, n],
      so that ``x = u @ c``. Columns of x that are zero are exactly zero in c.

    Cost: O(m n k); c costs O(n^2 k), no product of the size of x.

    >>> x = jnp.array([[3.0, 0.0], [4.0, 0.0], [0.0, 0.0]])
    >>> u, c = column_basis(x)
    >>> print(jnp.abs(c[0]).round(4), jnp.allclose(u @ c, x))
    [5. 0.] True
    """
    if x.shape[-2] > x.shape[-1]:
        return _by_platform(x, cpu=tall.column_basis, default=_column_basis)
    u, _, _ = svd(x)
    return u, matmul(transpose(u), x)


def _column_basis(x: jax.Array) -> Pair:
    q, r = lapack.thin_qr(x)
    u, s, vt = lapack.thin_svd(r)
    u, _, _ = keep_directions(u, s, vt, nonzero_directions(s))
    return matmul(q, u), matmul(transpose(u), r)


@column_basis.defjvp
def _column_basis_jvp(primals: Arrays, tangents: Arrays) -> tuple[Pair, Pair]:
    (x,), (dx,) = primals, tangents
    (u, _, _), (du, _, _) = jax.jvp(svd, (x,), (dx,))
    ut = transpose(u)
    return (u, matmul(ut, x)), (du, matmul(transpose(du), x) + matmul(ut, dx))


@jax.custom_jvp
def row_basis(x: jax.Array) -> Pair:
    """The same of rows: c = ``x v`` [..., m, k] and vt [..., k, n], ``x = c @ vt``.

    >>> x = jnp.array([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0]])
    >>> c, vt = row_basis(x)
    >>> print(jnp.abs(c[:, 0]).round(4), jnp.allclose(c @ vt, x))
    [5. 0.] True
    """
    if x.shape[-2] < x.shape[-1]:
        return _by_platform(x, cpu=tall.row_basis, default=_row_basis)
    _, _, vt = svd(x)
    return matmul(x, transpose(vt)), vt


def _row_basis(x: jax.Array) -> Pair:
    v, c = _column_basis(transpose(x))
    return transpose(c), transpose(v)


@row_basis.defjvp
def _row_basis_jvp(primals: Arrays, tangents: Arrays) -> tuple[Pair, Pair]:
    (x,), (dx,) = primals, tangents
    (_, _, vt), (_, _, dvt) = jax.jvp(svd, (x,), (dx,))
    v = transpose(vt)
    return (matmul(x, v), vt), (matmul(x, transpose(dvt)) + matmul(dx, v), dvt)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def svd_of_product(
    b: jax.Array, a: jax.Array, rank: int | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Singular value decomposition of ``b @ a`` from its factors.

    Args:
      b: [..., m, k].
      a: [..., k, n].
      rank: give only so many of the directions, the leading ones.

    Returns:
      u [..., m, d], s [..., d], vt [..., d, n] with d = min(m, k, n, rank), as `svd`.

    Cost: O((m + n) k^2 + k^3) time and O((m + n) k) memory; ``b @ a`` is never formed.

    >>> b, a = jnp.array([[1.0], [0.0], [1.0]]), jnp.array([[0.0, 2.0]])
    >>> print(svd_of_product(b, a)[1].round(4))
    [2.8284]
    """
    route = _svd_of_product
    if b.shape[-1] < min(b.shape[-2], a.shape[-1]):
        route = tall.svd_of_product
    return _by_platform(
        b, a, cpu=partial(route, rank), default=partial(_svd_of_product, rank)
    )


def _svd_of_product(rank: int | None, b: jax.Array, a: jax.Array) -> Triple:
    (m, k), n = b.shape[-2:], a.shape[-1]
    left, small_b = lapack.thin_qr(b) if m > k else (None, b)
    right, small_a = lapack.thin_qr(transpose(a)) if n > k else (None, transpose(a))
    u, s, vt = leading(rank, *lapack.thin_svd(matmul(small_b, transpose(small_a))))
    u = u if left is None else matmul(left, u)
    vt = vt if right is None else matmul(vt, transpose(right))
    return keep_directions(u, s, vt, nonzero_directions(s))


@svd_of_product.defjvp
def _svd_of_product_jvp(
    rank: int | None, primals: Arrays, tangents: Arrays
) -> tuple[Triple, Triple]:
    (b, a), (db, da) = primals, tangents
    u, s, vt = svd_of_product(b, a)
    v, at, dat = transpose(vt), transpose(a), transpose(da)
    dx_v = matmul(db, matmul(a, v)) + matmul(b, matmul(da, v))
    dxt_u = matmul(at, matmul(transpose(db), u)) + matmul(dat, matmul(transpose(b), u))
    changes = _svd_tangents(u, s, vt, dx_v, dxt_u)
    return leading(rank, u, s, vt), leading(rank, *changes)


@jax.custom_jvp
def polar(x: jax.Array) -> jax.Array:
    """The orthogonal polar factor ``u @ vt`` of ``x = u diag(s) vt``.

    It is the matrix with singular values 1 (and 0 in the null space, which is left
    out) nearest to x. Unlike u and vt alone it is differentiable at repeated singular
    values: its derivative divides by sums ``s_i + s_j``, never by differences.

    Args:
      x: [..., m, n].

    Returns:
      [..., m, n].

    >>> print(polar(jnp.array([[2.0, 0.0], [0.0, 5.0]])))
    [[1. 0.]
     [0. 1.]]
    """
    return _by_platform(x, cpu=tall.polar, default=_polar)


def _polar(x: jax.Array) -> jax.Array:
    u, _, vt = svd(x)
    return matmul(u, vt)


@polar.defjvp
def _polar_jvp(primals: Arrays, tangents: Arrays) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    u, s, vt = svd(x)
    v, inverse = transpose(vt), divide(1, s)
    dx_v, dxt_u = matmul(dx, v), matmul(transpose(dx), u)
    small = matmul(transpose(u), dx_v)
    sums = s[..., :, None] + s[..., None, :]
    turn = (small - transpose(small)) * divide(1, sums)
    out_of_u = (dx_v - matmul(u, small)) * inverse[..., None, :]
    out_of_v = (dxt_u - matmul(v, transpose(small))) * inverse[..., None, :]
    tangent = matmul(matmul(u, turn) + out_of_u, vt) + matmul(u, transpose(out_of_v))
    return matmul(u, vt), tangent


def _by_platform(
    x: jax.Array, *rest: jax.Array, cpu: Callable[..., Any], default: Callable[..., Any]
) -> Any:
    """For float32 the faster route of a CPU; the other one elsewhere."""
    if x.dtype != jnp.float32:
        return default(x, *rest)
    return lax.platform_dependent(x, *rest, cpu=cpu, default=default)


def _svd_tangents(
    u: jax.Array, s: jax.Array, vt: jax.Array, dx_v: jax.Array, dxt_u: jax.Array
) -> Triple:
    """Tangents of u, s, vt from ``dx @ v`` and ``dx.T @ u``."""
    v = transpose(vt)
    small = matmul(transpose(u), dx_v)
    squares = s * s
    gaps = squares[..., None, :] - squares[..., :, None]
    noise = rank_tolerance(s.dtype) * squares[..., :1, None]
    turn = divide(1, jnp.where(jnp.abs(gaps) > noise, gaps, 0))
    turn = jnp.where(jnp.eye(s.shape[-1], dtype=bool), 0, turn)
    row, column = s[..., None, :], s[..., :, None]
    inverse = divide(1, s)[..., None, :]
    du = matmul(u, turn * (small * row + column * transpose(small)))
    du = du + (dx_v - matmul(u, small)) * inverse
    dv = matmul(v, turn * (column * small + transpose(small) * row))
    dv = dv + (dxt_u - matmul(v, transpose(small))) * inverse
    return du, jnp.diagonal(small, axis1=-2, axis2=-1), transpose(dv)
