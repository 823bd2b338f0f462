"""Whether updates point the same way, and how large their merge is."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxmerge import linalg
from jaxmerge.diagnostics.ranks import task_gram
from jaxmerge.stacks import task_norms
from jaxmerge.types import AdapterStack, Update
from jaxmerge.updates import norm

_ENTRIES = 1 << 15  # formed at a time; blocks that fit into a cache are 12x faster


class SignConflict(NamedTuple):
    """Shares of entries with conflicting signs.

    Attributes:
      pairs: [T, T], of the entries where both tasks are non-zero, those of opposite
        signs. Independent updates have 0.5.
      anywhere: [], of the entries where at least two tasks are non-zero, those where
        both signs occur. T independent updates have ``1 - 2^(1 - T)``.
    """

    pairs: jax.Array
    anywhere: jax.Array


def sign_conflict(stack: AdapterStack, *, entries: int = _ENTRIES) -> SignConflict:
    """Share of the entries of the updates on whose sign the tasks disagree.

    The interference that TIES resolves by election (arXiv 2306.01708, its figure of
    sign conflicts). Signs are a matter of single entries, so they are counted in full
    space, a block of rows at a time; in core or KnOTS space there would be others.

    Args:
      stack: T adapters of one module.
      entries: numbers of all tasks' updates that are in memory at a time; rows are
        taken in blocks of ``entries / (T n)``, at least one.

    Returns:
      SignConflict; 0 where there is nothing to compare. Invariant to the gauge and to
      positive scales.

    Cost: O(m n (K + T^2)) time, O(entries) memory.

    >>> from jaxmerge.stacks import stack_adapters
    >>> up, half = ([[1.0], [1.0]], [[1.0]]), ([[1.0], [-1.0]], [[1.0]])
    >>> found = sign_conflict(stack_adapters([up, half]))
    >>> print(found.pairs[0, 1], found.anywhere)
    0.5 0.5
    """
    tasks, m, rank = stack.b.shape
    rows = min(m, max(1, entries // (tasks * stack.a.shape[2])))
    blocks = -(-m // rows)
    padded = jnp.pad(stack.b, ((0, 0), (0, blocks * rows - m), (0, 0)))
    split = jnp.moveaxis(padded.reshape(tasks, blocks, rows, rank), 1, 0)
    counts = jax.tree.map(
        partial(jnp.sum, axis=0), lax.map(partial(_count, stack.a), split)
    )
    product, both, mixed, several = counts
    return SignConflict(
        pairs=linalg.divide((both - product) / 2, both),
        anywhere=linalg.divide(mixed, several),
    )


def task_cosines(stack: AdapterStack) -> jax.Array:
    """Cosines ``<D_i, D_j> / (||D_i|| ||D_j||)`` of the updates, [T, T]; 0 for a zero.

    Updates that are orthogonal add without interference in weight space (the premise of
    task arithmetic, arXiv 2212.04089, whose figure of cosines between tasks this is).

    >>> from jaxmerge.stacks import stack_adapters
    >>> print(task_cosines(stack_adapters([([[3.0]], [[1.0]]), ([[-1.0]], [[2.0]])])))
    [[ 1. -1.]
     [-1.  1.]]
    """
    gram = task_gram(stack)
    norms = linalg.root(jnp.diagonal(gram))
    product = norms[:, None] * norms[None, :]
    return linalg.divide(gram, product)


def norm_ratio(stack: AdapterStack, update: Update) -> jax.Array:
    """``||D|| / mean_t ||D_t||``, the merged norm against the mean of the single norms.

    Pico (arXiv 2604.16826) restores it to 1 after the merge. The mean is over the tasks
    that adapt the module; T orthogonal updates of one norm have a sum of ratio sqrt(T)
    and a mean of 1 / sqrt(T). 0 where every update is zero.

    >>> from jaxmerge.mergers.linear import concat
    >>> from jaxmerge.stacks import stack_adapters
    >>> stack = stack_adapters([([[3.0]], [[1.0]]), ([[-1.0]], [[1.0]])])
    >>> print(norm_ratio(stack, concat(stack)))
    1.0
    """
    single = jnp.sum(task_norms(stack)) / len(stack.present)
    return linalg.divide(norm(update), single)


def _count(a: jax.Array, b: jax.Array) -> tuple[jax.Array, ...]:
    """Sums over the entries of one block of rows, ``b`` [T, rows, R]."""
    signs = jnp.sign(linalg.einsum("tmr,trn->tmn", b, a))
    there = jnp.abs(signs)
    product = linalg.einsum("imn,jmn->ij", signs, signs)
    both = linalg.einsum("imn,jmn->ij", there, there)
    mixed = (jnp.max(signs, axis=0) > 0) & (jnp.min(signs, axis=0) < 0)
    several = jnp.sum(there, axis=0) > 1
    return product, both, jnp.sum(mixed, dtype=a.dtype), jnp.sum(several, dtype=a.dtype)
