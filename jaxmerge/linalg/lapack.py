"""Decompositions of each matrix of a batch, as LAPACK or the device gives them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import sequential_vmap

Arrays = tuple[jax.Array, ...]


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


thin_qr = _of_each_matrix(lambda x: tuple(jnp.linalg.qr(x)), "(m,k),(k,n)")
thin_svd = _of_each_matrix(
    lambda x: tuple(jnp.linalg.svd(x, full_matrices=False)), "(m,k),(k),(k,n)"
)
upper_triangle = _of_each_matrix(lambda x: (jnp.linalg.qr(x, mode="r"),), "(k,n)")
symmetric_eigen = _of_each_matrix(lambda x: tuple(jnp.linalg.eigh(x)), "(m),(m,n)")
