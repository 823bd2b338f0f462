"""The only home of decompositions: precision, numerical rank and derivatives.

Every function works in the dtype it is given, with matrix products at the highest
precision of the device. A direction whose singular value is at most
``rank_tolerance * s[0]`` is rounding noise: its value is set to 0 and its vectors to
zero vectors, so that no result depends on the vectors that a routine happens to pick
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
from jax.custom_batching import sequential_vmap
from jax.typing import ArrayLike, DTypeLike

from jaxmerge import tall

ORDINARY = 20  # exponents within which squares and products stay in range
_HIGHEST = lax.Precision.HIGHEST
Arrays = tuple[jax.Array, ...]
Triple = tuple[jax.Array, jax.Array, jax.Array]


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


def _of_each_matrix(
    decompose: Callable[[jax.Array], Arrays], factors: str
) -> Callable[[jax.Array], Arrays]:
    """Decomposes [..., m, n]; on a CPU one matrix after the other.

    Routines differ in what they make of values that are not finite, and may not end:
    they are given zeros instead, and the factors are NaN.

    A batched LAPACK call splits its batch over XLA's threads and waits for them; on few
    cores several such calls at once take all threads for waiting, and never end.
    """
    one_by_one = jnp.vectorize(
        sequential_vmap(decompose), signature=f"(m,n)->{factors}"
    )

    @jax.jit
    def decompose_all(x: jax.Array) -> Arrays:
        finite = jnp.all(jnp.isfinite(x), axis=(-2, -1))
        found = lax.platform_dependent(
            jnp.where(finite[..., None, None], x, 0), cpu=one_by_one, default=decompose
        )
        return tuple(
            jnp.where(jnp.expand_dims(finite, range(finite.ndim, y.ndim)), y, jnp.nan)
            for y in found
        )

    return decompose_all


_thin_qr = _of_each_matrix(lambda x: tuple(jnp.linalg.qr(x)), "(m,k),(k,n)")
_thin_svd = _of_each_matrix(
    lambda x: tuple(jnp.linalg.svd(x, full_matrices=False)), "(m,k),(k),(k,n)"
)
_triangle = _of_each_matrix(lambda x: (jnp.linalg.qr(x, mode="r"),), "(k,n)")
_symmetric_eigen = _of_each_matrix(lambda x: tuple(jnp.linalg.eigh(x)), "(m),(m,n)")


def eigh(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues [..., n], ascending, and vectors [..., n, n] of a symmetric matrix.

    It is meant for statistics, which are data: no derivative passes through it.

    >>> print(eigh(jnp.diag(jnp.array([2.0, 1.0])))[0])
    [1. 2.]
    """
    values, vectors = _symmetric_eigen(jax.lax.stop_gradient(x))
    return values, vectors


def triangle(x: jax.Array) -> jax.Array:
    """``R`` [..., k, n] of ``x = Q R``: the columns of x in coordinates of their span.

    It has their inner products, ``R^T R = x^T x``, at k = min(m, n) numbers for each
    column. No derivative passes through it.

    >>> print(jnp.abs(triangle(jnp.array([[3.0], [4.0]]))))
    [[5.]]
    """
    (found,) = _triangle(jax.lax.stop_gradient(x))
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
        return _by_platform(x, cpu=_tall_through_gram, default=_tall_through_qr)
    if m < n:
        return _by_platform(x, cpu=_wide_through_gram, default=_wide_through_qr)
    u, s, vt = _thin_svd(x)
    return keep_directions(u, s, vt, nonzero_directions(s))


def _tall_through_qr(x: jax.Array) -> Triple:
    q, r = _thin_qr(x)
    u, s, vt = _thin_svd(r)
    return keep_directions(matmul(q, u), s, vt, nonzero_directions(s))


def _wide_through_qr(x: jax.Array) -> Triple:
    v, s, ut = _tall_through_qr(transpose(x))
    return transpose(ut), s, transpose(v)


def _tall_through_gram(x: jax.Array) -> Triple:
    v, s, inverse = _directions(tall.gram_of_columns(x))
    u = tall.rounded_product(x, v * inverse[..., None, :])
    return u, s.astype(x.dtype), transpose(v).astype(x.dtype)


def _wide_through_gram(x: jax.Array) -> Triple:
    u, s, inverse = _directions(tall.gram_of_rows(x))
    small = lax.optimization_barrier(transpose(u * inverse[..., None, :]))
    vt = tall.product(small, x)
    return u.astype(x.dtype), s.astype(x.dtype), vt.astype(x.dtype)


def _directions(gram: jax.Array) -> Triple:
    """Singular vectors, values and 1 / values of what has this Gram matrix.

    In float64, for what was in float32: directions that are rounding noise there are 0.
    """
    with jax.enable_x64(True):
        squares, v = (jnp.flip(y, axis=-1) for y in _symmetric_eigen(gram))
        s = root(squares)
        kept = ~(s <= rank_tolerance(jnp.float32) * s[..., :1])
        s = jnp.where(kept, s, 0)
        return jnp.where(kept[..., None, :], v, 0), s, divide(1.0, s)


def _by_platform(
    x: jax.Array, *rest: jax.Array, cpu: Callable[..., Any], default: Callable[..., Any]
) -> Any:
    """For float32 the faster route of a CPU; the other one elsewhere."""
    if x.dtype != jnp.float32:
        return default(x, *rest)
    return lax.platform_dependent(x, *rest, cpu=cpu, default=default)


@svd.defjvp
def _svd_jvp(primals: Arrays, tangents: Arrays) -> tuple[Triple, Triple]:
    (x,), (dx,) = primals, tangents
    u, s, vt = svd(x)
    tangent = _svd_tangents(
        u, s, vt, matmul(dx, transpose(vt)), matmul(transpose(dx), u)
    )
    return (u, s, vt), tangent


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
    route = _product_through_qr
    if b.shape[-1] < min(b.shape[-2], a.shape[-1]):
        route = _product_through_gram
    return _by_platform(
        b, a, cpu=partial(route, rank), default=partial(_product_through_qr, rank)
    )


def _product_through_qr(rank: int | None, b: jax.Array, a: jax.Array) -> Triple:
    (m, k), n = b.shape[-2:], a.shape[-1]
    left, small_b = _thin_qr(b) if m > k else (None, b)
    right, small_a = _thin_qr(transpose(a)) if n > k else (None, transpose(a))
    u, s, vt = _leading(rank, *_thin_svd(matmul(small_b, transpose(small_a))))
    u = u if left is None else matmul(left, u)
    vt = vt if right is None else matmul(vt, transpose(right))
    return keep_directions(u, s, vt, nonzero_directions(s))


def _product_through_gram(rank: int | None, b: jax.Array, a: jax.Array) -> Triple:
    """Columns of b are brought to norm 1 first: their sizes belong to the product."""
    gram_b, gram_a = tall.gram_of_columns(b), tall.gram_of_rows(a)
    with jax.enable_x64(True):
        size = root(jnp.diagonal(gram_b, axis1=-2, axis2=-1))
        sizes = size[..., :, None] * size[..., None, :]
        left, left_s, left_inverse = _directions(divide(gram_b, sizes))
        right, right_s, right_inverse = _directions(gram_a * sizes)
        small = matmul(transpose(left * left_s[..., None, :]), right)
        small = small * right_s[..., None, :]
        u, s, vt = _leading(rank, *_thin_svd(small.astype(b.dtype)))
        u, s, vt = keep_directions(u, s, vt, nonzero_directions(s))
        to_u = divide(left * left_inverse[..., None, :], size[..., :, None])
        to_vt = transpose(right * right_inverse[..., None, :] * size[..., :, None])
        u = tall.rounded_product(b, matmul(to_u, tall.doubles(u)))
        to_vt = lax.optimization_barrier(matmul(tall.doubles(vt), to_vt))
        return u, s, tall.product(to_vt, a).astype(a.dtype)


def _leading(rank: int | None, u: jax.Array, s: jax.Array, vt: jax.Array) -> Triple:
    return u[..., :rank], s[..., :rank], vt[..., :rank, :]


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
    return _leading(rank, u, s, vt), _leading(rank, *changes)


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
    return _by_platform(x, cpu=_polar_through_gram, default=_polar_through_svd)


def _polar_through_svd(x: jax.Array) -> jax.Array:
    u, _, vt = svd(x)
    return matmul(u, vt)


def _polar_through_gram(x: jax.Array) -> jax.Array:
    """``x (x^T x)^(-1/2)``, or ``(x x^T)^(-1/2) x``."""
    long = x.shape[-2] > x.shape[-1]
    gram = tall.gram_of_columns(x) if long else tall.gram_of_rows(x)
    v, _, inverse = _directions(gram)
    small = tall.product(v * inverse[..., None, :], transpose(v))
    if long:
        return tall.rounded_product(x, small)
    return tall.product(small, x).astype(x.dtype)


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


def keep_directions(
    u: jax.Array, s: jax.Array, vt: jax.Array, keep: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sets the directions [..., k] that are not kept to zero, values and vectors."""
    return (
        jnp.where(keep[..., None, :], u, 0),
        jnp.where(keep, s, 0),
        jnp.where(keep[..., :, None], vt, 0),
    )


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
