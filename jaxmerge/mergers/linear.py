"""Linear merging: sums and means of updates, exact at the sum of the ranks."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxmerge.doors import check_matrices, check_stack
from jaxmerge.stacks import concatenate, weigh
from jaxmerge.types import AdapterStack, LowRank


def total(matrices: jax.Array, **extra: Any) -> jax.Array:
    """Sum over tasks, ``sum_t M_t``: [T, p, q] -> [p, q] (arXiv 2212.04089).

    >>> print(total(jnp.ones((3, 1, 2))))
    [[3. 3.]]
    """
    check_matrices(total, matrices, extra)
    return jnp.sum(matrices, axis=0)


def mean(matrices: jax.Array, **extra: Any) -> jax.Array:
    """Mean over tasks, ``sum_t M_t / T``: [T, p, q] -> [p, q].

    >>> print(mean(jnp.ones((3, 1, 2))))
    [[1. 1.]]
    """
    check_matrices(mean, matrices, extra)
    return jnp.mean(matrices, axis=0)


def concat(
    stack: AdapterStack, *, weights: ArrayLike | None = None, **extra: Any
) -> LowRank:
    """Task arithmetic, exactly: ``sum_t w_t B_t A_t`` at rank K (arXiv 2212.04089).

    Args:
      stack: T adapters of one module.
      weights: [T], any real numbers, negative ones included; ones unless given.

    Returns:
      LowRank of rank K = sum of the ranks. The usual lambda is `jaxmerge.scale`.

    Cost: a copy, O((m + n) K).

    >>> from jaxmerge.stacks import stack_adapters
    >>> from jaxmerge.updates import dense
    >>> stack = stack_adapters([([[1.0]], [[2.0]]), ([[3.0]], [[1.0]])])
    >>> print(dense(concat(stack, weights=[1.0, -1.0])))
    [[-1.]]
    """
    check_stack(concat, stack, extra)
    return concatenate(weigh(stack, weights))


task_arithmetic = concat


def average(
    stack: AdapterStack, *, weights: ArrayLike | None = None, **extra: Any
) -> LowRank:
    """``sum_t w_t B_t A_t / T`` at rank K, T counting the tasks that adapt the module.

    Args:
      stack: T adapters of one module.
      weights: [T], any real numbers; ones unless given. The sum is divided by the
        number of tasks, not by the sum of the weights: for a weighted mean give weights
        that sum to T, or `concat` weights that sum to 1.

    Returns:
      LowRank of rank K = sum of the ranks.

    Raises:
      ValueError: ``weights`` is not of shape [T].

    >>> from jaxmerge.stacks import stack_adapters
    >>> from jaxmerge.updates import dense
    >>> stack = stack_adapters([([[1.0]], [[2.0]]), None, ([[3.0]], [[2.0]])])
    >>> print(dense(average(stack)))
    [[4.]]
    """
    check_stack(average, stack, extra)
    b, a = concat(stack, weights=weights)
    return LowRank(b=b / len(stack.present), a=a)
