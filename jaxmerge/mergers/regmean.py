"""Merging by least squares on inputs: RegMean and SSR-Merge, in factors only.

Both ask that the merged update D does to each task's inputs what the task's own update
does, ``min sum_t ||D_t X_t - D X_t||^2``, with the same weight for every task whatever
the number of its tokens. They read the statistics of the module from ``stats``, which
are constants: derivatives reach the factors and the weights.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxmerge import linalg
from jaxmerge.doors import check_stack
from jaxmerge.mergers.linear import concat
from jaxmerge.stacks import concatenate, weigh
from jaxmerge.stats.matching import check_fits
from jaxmerge.stats.moments import (
    Statistics,
    equal_parts,
    mean_square,
    scale_features,
    shrink_off_diagonal,
    spectrum,
    times_gram,
)
from jaxmerge.types import AdapterStack, Calibration, LowRank


def regmean(
    stack: AdapterStack,
    *,
    stats: Statistics,
    off_diagonal: ArrayLike = 1.0,
    ridge: ArrayLike = 0.0,
    weights: ArrayLike | None = None,
    **extra: Any,
) -> LowRank:
    """RegMean (arXiv 2212.09849) on updates: ``(sum_t D_t G_t) (sum_t G_t)^-1``.

    The sum of the adapters that `regmean_adapters` makes. The base weight drops out.
    One adapter comes back unchanged.

    Args:
      stack: T adapters of one module.
      stats: see `regmean_adapters`, and so ``off_diagonal`` and ``ridge``.
      weights: [T], multiply the updates.

    Returns:
      LowRank of rank K = sum of the ranks.

    Raises:
      ValueError: statistics of other tasks or inputs, or off-diagonals of a sketch.

    Cost: O(K n^2) and one eigendecomposition, O(n^3); with a sketch of l rows
    O(n (T l)^2 + K n T l).

    Deviations: the official code inverts G, whatever its rank, weighs tasks by their
    token counts, and merges whole weights. Here eigenvalues at the level of rounding
    noise count as zero (of G with unit diagonal), and a ridge regularises both sides.

    >>> from jaxmerge.stats.moments import moments_of, stack_moments
    >>> from jaxmerge.stacks import stack_adapters
    >>> from jaxmerge.updates import dense
    >>> stack = stack_adapters([([[2.0]], [[1.0, 9.0]]), ([[3.0]], [[9.0, 1.0]])])
    >>> seen = [{"q": moments_of(x[None])} for x in jnp.eye(2)]
    >>> print(dense(regmean(stack, stats=stack_moments(seen)["q"])).round(4))
    [[2. 3.]]
    """
    check_stack(regmean, stack, extra)
    of_tasks = regmean_adapters(
        stack, stats=stats, off_diagonal=off_diagonal, ridge=ridge
    )
    return concat(of_tasks, weights=weights)


def regmean_adapters(
    stack: AdapterStack,
    *,
    stats: Statistics,
    off_diagonal: ArrayLike = 1.0,
    ridge: ArrayLike = 0.0,
    **extra: Any,
) -> AdapterStack:
    """The adapters whose sum is RegMean: each answers to inputs like those of its task.

    With G_t the mean of ``z z^T`` over the inputs of task t and ``G = sum_t G_t``, the
    rows of A_t become ``A_t / T + A_t (G_t - G / T) G^-``: ``A_t G_t G^-1`` where G can
    be inverted, and of all least squares solutions the one nearest to A_t / T, which
    stays in features in which no task has inputs. Nearest is meant in units of each
    feature's root mean square, so scaling features changes nothing. B is untouched.

    Any merge of them begins where RegMean ends: a learned one
    (``compose(tara_b(), before=partial(regmean_adapters, ridge=0.01))``) at
    coefficients of 1, a rule with less left that disagrees.

    Args:
      stack: T adapters of one module.
      stats: moments of the inputs [T, ..] (`jaxmerge.stack_moments`), each task's
        with its own adapter in the model; a `Sketch` avoids n x n.
      off_diagonal: factor on the entries of every G_t beside the diagonal, for exact
        moments; 0.9 in the paper, 0.1 for T5.
      ridge: ``ridge * diag(G) / T`` is added to each G_t, which draws the rows towards
        A_t / T; may be traced.

    Returns:
      AdapterStack of the same ranks.

    Raises:
      ValueError: statistics of other tasks or inputs, or off-diagonals of a sketch.

    Cost: that of `regmean`.

    Source: RegMean (arXiv 2212.09849), taken apart by adapters here.

    >>> from jaxmerge.stats.moments import moments_of, stack_moments
    >>> from jaxmerge.stacks import stack_adapters
    >>> stack = stack_adapters([([[2.0]], [[1.0, 9.0]]), ([[3.0]], [[9.0, 1.0]])])
    >>> seen = [{"q": moments_of(x[None])} for x in jnp.eye(2)]
    >>> print(regmean_adapters(stack, stats=stack_moments(seen)["q"]).a.round(4))
    [[[1. 0.]]
    <BLANKLINE>
     [[0. 1.]]]
    """
    check_stack(regmean_adapters, stack, extra)
    parts = _of_present_tasks(stack, stats)
    parts = [shrink_off_diagonal(part, keep=off_diagonal) for part in parts]
    total = shrink_off_diagonal(_total(stack, stats), keep=off_diagonal)
    a, routed = concatenate(stack).a, _times_own_gram(stack, parts)
    rows = least_squares_rows(a, routed, total, tasks=len(parts), ridge=ridge)
    padding, each, at = stack.a.shape[1], [], 0
    for rank in stack.ranks:
        each.append(jnp.pad(rows[at : at + rank], ((0, padding - rank), (0, 0))))
        at += rank
    return stack.replace(a=jnp.stack(each))


def of_regmean(*, off_diagonal: ArrayLike = 1.0, ridge: ArrayLike = 0.0) -> Calibration:
    """`regmean_adapters` as a calibration, in front of any merge."""
    before = partial(regmean_adapters, off_diagonal=off_diagonal, ridge=ridge)
    return Calibration(before=before)


def least_squares_rows(
    a: jax.Array,
    routed: jax.Array,
    total: Statistics,
    *,
    tasks: int,
    ridge: ArrayLike = 0.0,
) -> jax.Array:
    """``A / T + (routed - A G / T) (G + ridge)^+``: rows of least squares.

    Equal to ``routed G^+`` where G is not singular. In this form one task gives its
    own rows back to the last bit, and of the solutions it is the one that is nearest to
    the mean, with every feature in units of its root mean square. In these units G has
    ones on its diagonal, so a feature that is a thousand times as large as the others,
    as language models have them, does not bring the others to the level of noise.

    Args:
      a: [K, n], rows of all tasks.
      routed: [K, n], ``A_t X_t X~_t^T`` for the inputs X_t of the task's own model and
        those of the merged model, X~_t; RegMean has one of them only.
      total: sum of the moments of X~_t, of count 1.
      tasks: T.
      ridge: in units of the diagonal of G.
    """
    squares = mean_square(total)
    unit = linalg.divide(1, linalg.root(squares))
    columns = unit[None, :]
    values, vectors = spectrum(scale_features(total, by=unit))
    values = values + jnp.asarray(ridge, values.dtype)
    inverse = linalg.divide(1, values)
    rest = (routed - times_gram(a, total) / tasks) * columns
    rest = linalg.matmul(linalg.matmul(rest, vectors) * inverse[None, :], vectors.T)
    return a / tasks + rest * columns


def ssr(
    stack: AdapterStack,
    *,
    stats: Statistics,
    ridge: ArrayLike = 0.0,
    weights: ArrayLike | None = None,
    **extra: Any,
) -> LowRank:
    """SSR-Merge (arXiv 2606.10617): a K x K router between all A and all B.

    ``D = B_cat R A_cat`` with ``R = Q G^-1``, ``G = A_cat (sum_t G_t) A_cat^T`` and row
    blocks ``Q_t = A_t G_t A_cat^T``, G_t the mean of ``z z^T`` over the inputs of task
    t. It is the least squares optimum among all R if B_cat has full column rank.
    Computed as ``R = I + (Q - G) G^+``, so that directions in which no task has inputs
    are left to task arithmetic, and one adapter comes back unchanged.

    Args:
      stack: T adapters of one module.
      stats: moments of the inputs [T, ..], each task's with its own adapter in the
        model; exact, or a `Sketch`.
      ridge: added to the diagonals of Q and G, in units of the diagonal of G; draws R
        towards the identity. May be traced.
      weights: [T], multiply the updates.

    Returns:
      LowRank of rank K, with A_cat for ``a``.

    Raises:
      ValueError: statistics of other tasks or inputs.

    Cost: O(K n^2 + K^2 (m + n) + K^3), with a sketch of l rows O(K n T l) first.

    Deviations: the official code adds 1e-4, an absolute number, to the diagonal of G
    alone, and weighs tasks by their token counts. Its paper has no ridge.

    >>> from jaxmerge.stats.moments import moments_of, stack_moments
    >>> from jaxmerge.stacks import stack_adapters
    >>> from jaxmerge.updates import dense
    >>> stack = stack_adapters([([[2.0]], [[1.0, 9.0]]), ([[3.0]], [[9.0, 1.0]])])
    >>> seen = [{"q": moments_of(x[None])} for x in jnp.eye(2)]
    >>> print(dense(ssr(stack, stats=stack_moments(seen)["q"])).round(4))
    [[2. 3.]]
    """
    check_stack(ssr, stack, extra)
    parts = _of_present_tasks(stack, stats)
    b, a = concatenate(weigh(stack, weights))
    q = linalg.matmul(_times_own_gram(stack, parts), a.T)
    g = linalg.matmul(times_gram(a, _total(stack, stats)), a.T)
    size = linalg.root(jnp.diagonal(g))  # every direction at the same scale
    unit = linalg.divide(1, size)
    scaled = unit[:, None] * g * unit[None, :]
    scaled = scaled + jnp.asarray(ridge, g.dtype) * jnp.diag((size > 0).astype(g.dtype))
    u, s, vt = linalg.svd(scaled)
    inverse = linalg.divide(1, s)
    change = linalg.matmul(b, q - g) * unit[None, :]
    change = linalg.matmul(linalg.matmul(change, vt.T * inverse[None, :]), u.T)
    return LowRank(b=b + change * unit[None, :], a=a)


def _of_present_tasks(stack: AdapterStack, stats: Statistics) -> list[Statistics]:
    check_fits("stats", stack, stats)
    return [
        jax.tree.map(lambda x, t=t: jax.lax.stop_gradient(x[t]), stats)
        for t in stack.present
    ]


def _total(stack: AdapterStack, stats: Statistics) -> Statistics:
    if len(stack.present) < len(stack.ranks):
        present = jnp.asarray(stack.present)
        stats = jax.tree.map(lambda x: x[present], stats)
    return jax.lax.stop_gradient(equal_parts(stats))


def _times_own_gram(stack: AdapterStack, parts: Sequence[Statistics]) -> jax.Array:
    rows = [
        times_gram(stack.a[t, : stack.ranks[t]], part)
        for t, part in zip(stack.present, parts, strict=True)
    ]
    return jnp.concatenate(rows)
