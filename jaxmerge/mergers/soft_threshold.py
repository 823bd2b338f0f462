"""LoRE (arXiv 2502.10749): low-rank estimates of the updates, by soft thresholds."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxmerge import linalg
from jaxmerge.doors import check_stack
from jaxmerge.refusals import Refusal
from jaxmerge.types import AdapterStack, Calibration, Merger, RealLike
from jaxmerge.updates import calibrated


def shrink_updates(
    stack: AdapterStack,
    *,
    threshold: RealLike,
    relative: bool = True,
    squared: bool = False,
    **extra: Any,
) -> AdapterStack:
    """Subtracts a threshold from the singular values of every update, not below 0.

    With ``D_t = U diag(s) V^T`` the update becomes ``U diag(max(s - tau, 0)) V^T``.
    Three thresholds tau solve three problems, mu being ``threshold``:

    * relative: ``tau = mu s_1``, a share of the largest value, so that 1 leaves
      nothing, and what is left does not depend on the size of the adapters;
    * absolute: ``tau = mu``, the published one. It minimises
      ``||X - D_t||^2 / 2 + mu ||X||_*``, with the nuclear norm, the sum of all s;
    * squared: ``tau = mu ||X||_*``. It minimises
      ``||X - D_t||^2 / 2 + mu ||X||_*^2 / 2``, which is what the source states, where
      a constant threshold is no solution. If k values stay, their new sum N has
      ``N = s_1 + .. + s_k - k mu N``. Its solution ``(s_1 + .. + s_k) / (1 + k mu)``
      rises with k as long as ``s_k > mu N``, and falls from then on. So its maximum
      over k is N, and no iteration is needed. It too follows the size of an adapter.

    Args:
      stack: T adapters of one module.
      threshold: mu, at least 0; it may be traced. At 0 the updates stay.
      relative: a share of the largest singular value of each update, or absolute.
      squared: the threshold of the squared nuclear norm, which follows the size of an
        adapter by itself, whatever ``relative`` says.

    Returns:
      AdapterStack with ``B_t <- U diag(max(s - tau, 0) / s) U^T B_t``; A is untouched,
      so that ``(B_t C, C^-1 A_t)`` becomes the same update, with C where it was.

    Raises:
      Refusal: a threshold below 0.

    Cost: O((m + n) R^2) for each task.

    >>> from jaxmerge.stacks import stack_adapters
    >>> stack = stack_adapters([(jnp.diag(jnp.array([4.0, 2.0, 1.0])), jnp.eye(3))])
    >>> print(jnp.diag(shrink_updates(stack, threshold=0.25).b[0]).round())
    [3. 1. 0.]
    >>> shrunk_more = shrink_updates(stack, threshold=0.25, squared=True)
    >>> print(jnp.diag(shrunk_more.b[0]).round())
    [3. 1. 0.]
    """
    _check(threshold)
    check_stack(shrink_updates, stack, extra)
    u, s, _ = linalg.svd_of_product(stack.b, stack.a)
    mu = jnp.asarray(threshold, s.dtype)
    if squared:
        tau = mu * _kept_sum(s, mu)
    else:
        tau = mu * (s[:, :1] if relative else jnp.ones_like(s[:, :1]))
    kept = linalg.divide(jnp.maximum(s - tau, 0), s)
    onto = linalg.matmul(linalg.transpose(u), stack.b)
    return stack.replace(b=linalg.matmul(u * kept[:, None, :], onto))


def shrunk(
    *, threshold: RealLike, relative: bool = True, squared: bool = False
) -> Calibration:
    """`shrink_updates` as a calibration, in front of any merge."""
    _check(threshold)
    return Calibration(
        before=partial(
            shrink_updates, threshold=threshold, relative=relative, squared=squared
        )
    )


def soft_threshold(
    merger: Merger, *, threshold: RealLike, relative: bool = True, squared: bool = False
) -> Merger:
    """A merger of low-rank estimates of the updates (`shrink_updates`).

    Args:
      merger: what merges the estimates; the weighted sum and TIES in the paper.
      threshold: mu, at least 0; at 0 nothing changes.
      relative: see `shrink_updates`.
      squared: see `shrink_updates`.

    Source: arXiv 2502.10749. Deviations: the source alternates between the estimates
    and a base model that it does not know; adapters know theirs, so that one step is
    the solution. What we know of it says no default for the threshold, so there is
    none.

    >>> from jaxmerge.mergers.linear import concat
    >>> from jaxmerge.stacks import stack_adapters
    >>> from jaxmerge.updates import dense
    >>> merge = soft_threshold(concat, threshold=1.0, relative=False)
    >>> print(dense(merge(stack_adapters([([[3.0]], [[1.0]]), ([[0.5]], [[1.0]])]))))
    [[2.]]
    """
    return calibrated(
        merger, shrunk(threshold=threshold, relative=relative, squared=squared)
    )


def _kept_sum(s: jax.Array, mu: jax.Array) -> jax.Array:
    """``max_k (s_1 + .. + s_k) / (1 + k mu)`` of values [T, d], [T, 1]."""
    counts = jnp.arange(1, s.shape[1] + 1, dtype=s.dtype)
    sums = jnp.cumsum(s, axis=1) / (1 + mu * counts)[None, :]
    return jnp.max(sums, axis=1, keepdims=True)


def _check(threshold: RealLike) -> None:
    if isinstance(threshold, int | float) and not threshold >= 0:
        raise Refusal(f"soft_threshold: threshold must be at least 0, got {threshold}")
