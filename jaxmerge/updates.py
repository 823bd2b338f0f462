"""Merged updates: arithmetic on `Update`, and the posts that change one.

A post takes the update first, its hyper-parameters as keywords, and ignores the inputs
that it does not need, so that `then` can chain any of them behind any merger.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxmerge import linalg
from jaxmerge.doors import check_adapters_of, check_update
from jaxmerge.stacks import near_factors, present_factors
from jaxmerge.types import AdapterStack, Calibration, LowRank, Merger, Post, Update


def dense(update: Update) -> jax.Array:
    """The update as one array [m, n]; forms ``b @ a`` of a low-rank one.

    >>> print(dense(LowRank(b=jnp.ones((2, 1)), a=jnp.ones((1, 3)))))
    [[1. 1. 1.]
     [1. 1. 1.]]
    """
    check_update(dense, update)
    return linalg.matmul(*update) if isinstance(update, LowRank) else update


def norm(update: Update) -> jax.Array:
    """Frobenius norm, of a low-rank update from the Gram matrices of its factors.

    ``||b a||^2 = sum((b^T b) * (a a^T))``: O((m + n) k^2) time, O(k^2) memory.

    >>> print(norm(LowRank(b=jnp.ones((2, 1)), a=jnp.ones((1, 2)))))
    2.0
    """
    check_update(norm, update)
    near, unit = near_one(update)
    return squares_root(near) / unit.b / unit.a


def squares_root(update: Update) -> jax.Array:
    """`norm` of an update of ordinary magnitude, whose squares are in range."""
    if not isinstance(update, LowRank):
        return linalg.root(jnp.sum(update * update))
    gram_b = linalg.matmul(update.b.T, update.b)
    gram_a = linalg.matmul(update.a, update.a.T)
    return linalg.root(jnp.sum(gram_b * gram_a))


def near_one(update: Update) -> tuple[Update, LowRank]:
    """An update times powers of two, and these: one for b or all of it, one for a.

    Both are 1 where the update is of ordinary magnitude, see `linalg.unit_power`.
    """
    if not isinstance(update, LowRank):
        unit = linalg.unit_power(update)
        return update * unit, LowRank(unit, jnp.ones_like(unit))
    unit = LowRank(linalg.unit_power(update.b), linalg.unit_power(update.a))
    return LowRank(b=update.b * unit.b, a=update.a * unit.a), unit


def _back(update: Update, unit: LowRank) -> Update:
    """Undoes `near_one`, also for a result of the other kind."""
    if isinstance(update, LowRank):
        return LowRank(b=update.b / unit.b, a=update.a / unit.a)
    return update / unit.b / unit.a


def scale(update: Update, *, by: ArrayLike, **extra: Any) -> Update:
    """``by * update``, the lambda of the papers; ``by`` may be traced.

    >>> print(scale(jnp.ones((1, 2)), by=0.5))
    [[0.5 0.5]]
    """
    check_update(scale, update, extra)
    if isinstance(update, LowRank):
        return LowRank(b=update.b * jnp.asarray(by, update.b.dtype), a=update.a)
    return update * jnp.asarray(by, update.dtype)


def singular_value_decomposition(
    update: Update, *, rank: int | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Singular value decomposition of an update: u [m, d], s [d], vt [d, n].

    d = min(m, n, its rank), and at most ``rank``.
    """
    if isinstance(update, LowRank):
        return linalg.svd_of_product(*update, rank)
    u, s, vt = linalg.svd(update)
    return u[:, :rank], s[:rank], vt[:rank]


def truncate(update: Update, *, rank: int, **extra: Any) -> LowRank:
    """Best approximation of a given rank in Frobenius norm.

    Keeps the ``rank`` largest singular values; what is lost is the norm of the others.
    The singular values go into b.

    Args:
      update: dense or low rank.
      rank: static rank of the result, at least 1. A rank above that of the update is
        allowed and exact.

    Cost: that of `jaxmerge.linalg.svd_of_product`; a dense update costs its SVD.

    >>> update = LowRank(b=jnp.eye(3), a=jnp.diag(jnp.array([4.0, 9.0, 1.0])))
    >>> print(dense(truncate(update, rank=1)).round(3))
    [[0. 0. 0.]
     [0. 9. 0.]
     [0. 0. 0.]]
    """
    check_update(truncate, update, extra)
    if rank < 1:
        raise ValueError(f"truncate: rank must be at least 1, got {rank}")
    near, unit = near_one(update)
    u, s, vt = singular_value_decomposition(near, rank=rank)
    return LowRank(b=u * s[None, :] / unit.b, a=vt / unit.a)


def isotropize(update: Update, **extra: Any) -> Update:
    """Sets all non-zero singular values to their mean: ``mean(s) u vt``.

    With the sum of the updates in front this is Iso-C (arXiv 2502.04959); behind
    TSV-M in core space it is the best method of Core Space merging (arXiv 2509.17786).

    Deviations: the official code divides by min(m, n) and fills the null space with
    arbitrary vectors of the same energy. Here the mean is over the values that are not
    rounding noise, and the rank does not grow.

    >>> print(isotropize(jnp.diag(jnp.array([1.0, 3.0]))))
    [[2. 0.]
     [0. 2.]]
    """
    check_update(isotropize, update, extra)
    near, unit = near_one(update)
    u, s, vt = singular_value_decomposition(near)
    mean = jnp.sum(s) / jnp.maximum(jnp.sum(s > 0), 1).astype(s.dtype)
    if isinstance(near, LowRank):
        return _back(LowRank(b=mean * u, a=vt), unit)
    return _back(mean * linalg.polar(near), unit)


def svc(
    update: Update, *, stack: AdapterStack, floor: ArrayLike = 1.0, **extra: Any
) -> Update:
    """Singular value calibration of a merged update (arXiv 2602.05536).

    For each left singular vector u_r of the merged update D, task t responds with
    ``s_t = <u_r^T D, u_r^T D_t> / ||u_r^T D_t||^2``, and the singular value is
    multiplied by ``T / sum_t max(floor, s_t)``: directions to which several tasks add
    are turned down.

    Args:
      update: merged update [m, n], dense or low rank.
      stack: the adapters it was merged from; tasks without an adapter do not count.
      floor: smallest response (alpha in the paper). At 1 the sum of orthogonal
        adapters stays as it is; 1/T, the default of the official script, inflates it
        by about T/2.

    Returns:
      An update of the same kind.

    Deviations: the official code clamps ``||u_r^T D_t||^2`` at 1e-12; here a task
    whose response is rounding noise relative to its own norm has response 0.

    Cost: O((m + n) K^2) for rank K; products with ``b[t]`` and ``a[t]``, no dense one.
    """
    check_update(svc, update, extra)
    check_adapters_of(svc, update, stack)
    near, unit = near_one(update)
    u, s, vt = singular_value_decomposition(near)
    (b, a), units = near_factors(*present_factors(stack))
    response_b = linalg.einsum("mk,tmr->tkr", u, b)
    onto_vt = linalg.einsum("trn,kn->trk", a, vt)
    gram_a = linalg.einsum("trn,tsn->trs", a, a)
    overlap = linalg.einsum("tkr,trk->tk", response_b, onto_vt)
    energy = linalg.einsum("tkr,trs,tks->tk", response_b, gram_a, response_b)
    total = linalg.einsum("tmr,trs,tms->t", b, gram_a, b)[:, None]
    negligible = energy <= linalg.rank_tolerance(s.dtype) ** 2 * total
    response = linalg.divide(overlap, jnp.where(negligible, 0, energy))
    response = response * ((units.b / unit.b) * (units.a / unit.a))[:, None]
    floored = jnp.maximum(jnp.asarray(floor, s.dtype), s[None, :] * response)
    calibrated = s * b.shape[0] / jnp.sum(floored, axis=0)
    result = LowRank(b=u * calibrated[None, :], a=vt)
    return _back(result if isinstance(near, LowRank) else dense(result), unit)


def calibrated(merger: Merger, calibration: Calibration) -> Merger:
    """A merger with a calibration around it.

    >>> from jaxmerge.mergers.linear import concat
    >>> from jaxmerge.stacks import stack_adapters
    >>> halved = Calibration(before=lambda stack, **_: stack.replace(b=stack.b / 2))
    >>> merge = calibrated(concat, halved)
    >>> print(dense(merge(stack_adapters([([[4.0]], [[1.0]])]))))
    [[2.]]
    """
    before, after = calibration

    def merge(stack: AdapterStack, **extra: Any) -> Update:
        update = merger(stack if before is None else before(stack, **extra), **extra)
        return update if after is None else after(update, stack=stack, **extra)

    return merge


def then(merger: Merger, *posts: Post) -> Merger:
    """A merger followed by posts, applied from left to right.

    >>> from functools import partial
    >>> from jaxmerge.mergers.linear import concat
    >>> halved = then(concat, partial(scale, by=0.5))
    """

    def merge(stack: AdapterStack, **extra: Any) -> Update:
        update = merger(stack, **extra)
        for post in posts:
            update = post(update, stack=stack, **extra)
        return update

    return merge
