"""The leading directions of a large matrix, from its products with thin ones."""

from functools import partial

import jax

from jaxmerge.linalg import matmul, polar, svd, transpose


@partial(jax.jit, static_argnames=("rank", "oversampling"))
def randomised_svd(
    x: jax.Array,
    *,
    rank: int,
    key: jax.Array,
    oversampling: int = 10,
    power_iterations: int = 4,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The largest singular values of a matrix and their vectors, nearly.

    An orthonormal basis Q of ``(x x^T)^q x Omega`` with Gaussian ``Omega [n, k + p]``
    holds the k leading directions but for what a power of ``s[k + p] / s[i]`` leaves
    out; ``Q^T x`` is then decomposed. Where the rank of x is at most k + p the result
    is that of `jaxmerge.linalg.svd`, to rounding.

    Args:
      x: [m, n].
      rank: k, how many directions.
      key: seed of Omega.
      oversampling: p, how many more directions are looked for.
      power_iterations: q, products with ``x x^T``, each of an orthonormal basis.

    Returns:
      u [m, k], s [k], vt [k, n], null directions set to zero.

    Cost: ``2 q + 2`` products of x with k + p vectors, O(q m n (k + p)) time.

    Source: Halko, Martinsson and Tropp, arXiv 0909.4061, algorithms 4.4 and 5.1.

    >>> import jax.numpy as jnp
    >>> x = jnp.diag(jnp.array([5.0, 3.0, 1.0, 0.1]))
    >>> print(randomised_svd(x, rank=2, key=jax.random.key(0))[1].round(4))
    [5. 3.]
    """
    width = min(rank + oversampling, *x.shape)
    basis = polar(matmul(x, jax.random.normal(key, (x.shape[1], width), x.dtype)))

    def sharpened(_: int, basis: jax.Array) -> jax.Array:
        return polar(matmul(x, polar(matmul(transpose(x), basis))))

    basis = jax.lax.fori_loop(0, power_iterations, sharpened, basis)
    u, s, vt = svd(matmul(transpose(basis), x))
    return matmul(basis, u)[:, :rank], s[:rank], vt[:rank]
