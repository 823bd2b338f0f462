"""Linear merging: sums and means of updates, exact at the sum of the ranks."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxmerge.types import AdapterStack, LowRank


def total(matrices: jax.Array, **extra: Any) -> jax.Array:
    """Sum over tasks, ``sum_t M_t``: [T, p, q] -> [p, q] (arXiv 2212.04089).

    >>> print(total(jnp.ones((3, 1, 2))))
    [[3. 3.]]
    """
    return jnp.sum(matrices, axis=0)


def mean(matrices: jax.Array, **extra: Any) -> jax.Array:
    """Mean over tasks, ``sum_t M_t / T``: [T, p, q] -> [p, q].

    >>> print(mean(jnp.ones((3, 1, 2))))
    [[1. 1.]]
    """
    return jnp.mean(matrices, axis=0)


def concatenate(stack: AdapterStack) -> LowRank:
    """``[B_1 .. B_T]`` [m, K] and ``[A_1; ..; A_T]`` [K, n] without the padding.

    K is exactly the sum of the ranks. The product is the sum of the updates.
    """
    return LowRank(
        b=jnp.concatenate([stack.b[t, :, : stack.ranks[t]] for t in stack.present], 1),
        a=jnp.concatenate([stack.a[t, : stack.ranks[t], :] for t in stack.present], 0),
    )


def present_factors(stack: AdapterStack) -> tuple[jax.Array, jax.Array]:
    """Padded factors b [T', m, R] and a [T', R, n] of the T' tasks that are present."""
    if len(stack.present) == len(stack.ranks):
        return stack.b, stack.a
    present = jnp.asarray(stack.present)
    return stack.b[present], stack.a[present]


def task_weights(stack: AdapterStack, weights: ArrayLike | None) -> jax.Array:
    """Weights of the tasks that adapt this module, one each unless given.

    Args:
      stack: T adapters of one module.
      weights: [T], any real numbers; None for ones.

    Returns:
      [number of present tasks], in the dtype of the stack.

    Raises:
      ValueError: ``weights`` is not of shape [T].
    """
    if weights is None:
        return jnp.ones(len(stack.present), stack.b.dtype)
    weights = jnp.asarray(weights, stack.b.dtype)
    if weights.shape != (len(stack.ranks),):
        raise ValueError(
            f"weights: expected one number for each of the {len(stack.ranks)} tasks, "
            f"got shape {weights.shape}"
        )
    return weights[jnp.asarray(stack.present)]


def weigh(stack: AdapterStack, weights: ArrayLike | None) -> AdapterStack:
    """Multiplies the update of each task by its weight."""
    if weights is None:
        return stack
    every = jnp.zeros(len(stack.ranks), stack.b.dtype)
    every = every.at[jnp.asarray(stack.present)].set(task_weights(stack, weights))
    return stack.replace(b=stack.b * every[:, None, None])


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

    >>> from jaxmerge.types import stack_adapters
    >>> from jaxmerge.updates import dense
    >>> stack = stack_adapters([([[1.0]], [[2.0]]), ([[3.0]], [[1.0]])])
    >>> print(dense(concat(stack, weights=[1.0, -1.0])))
    [[-1.]]
    """
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

    >>> from jaxmerge.types import stack_adapters
    >>> from jaxmerge.updates import dense
    >>> stack = stack_adapters([([[1.0]], [[2.0]]), None, ([[3.0]], [[2.0]])])
    >>> print(dense(average(stack)))
    [[4.]]
    """
    b, a = concat(stack, weights=weights)
    return LowRank(b=b / len(stack.present), a=a)
