"""The outputs that all adapters crowd into, before and after Pico's calibration."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmerge import linalg
from jaxmerge.diagnostics.overlap import shared_columns
from jaxmerge.diagnostics.ranks import stable_rank
from jaxmerge.learning.objectives import effective_rank
from jaxmerge.stacks import concatenate
from jaxmerge.types import AdapterStack


class Crowding(NamedTuple):
    """The spectrum of ``[B_1 .. B_T]`` and what Pico reports of it.

    Attributes:
      values: [min(m, K)], singular values in descending order.
      norm: [], Frobenius norm.
      largest_overlap: [], of the column spaces of two tasks (`overlaps`); 0 for one.
      effective_rank: [].
      stable_rank: [], one over the share of energy in the first direction.
      condition: [], largest over smallest non-zero singular value; 0 for zeros.
    """

    values: jax.Array
    norm: jax.Array
    largest_overlap: jax.Array
    effective_rank: jax.Array
    stable_rank: jax.Array
    condition: jax.Array


def crowding(stack: AdapterStack) -> Crowding:
    """Spectrum of all B side by side; of ``jaxmerge.calibrate(stack)``, after Pico.

    Source: arXiv 2604.16826, the figures and the table of the spectrum with and without
    calibration. They show B after a merge and its norm restored; this is what
    calibration does to B before any merger.

    Like the calibration it depends on the factors, not on the updates alone: moving a
    scale from A to B changes it. Use ``crowding(jaxmerge.balance(stack))`` without that
    freedom.

    Cost: O(m K^2).

    >>> from jaxmerge.mergers.pico import calibrate
    >>> from jaxmerge.stacks import stack_adapters
    >>> stack = stack_adapters([([[3.0], [0.0]], [[1.0]]), ([[4.0], [1.0]], [[1.0]])])
    >>> for found in (crowding(stack), crowding(calibrate(stack))):
    ...     print(found.effective_rank.round(2), found.condition.round(2))
    1.4 8.55
    1.62 4.36
    """
    return crowding_of(stack, shared_columns(stack.b)[0])


def crowding_of(stack: AdapterStack, shared: jax.Array) -> Crowding:
    """`crowding`, with the overlaps [T, T] of the column spaces of B at hand."""
    _, values, _ = linalg.svd(concatenate(stack).b)
    pairs = ~jnp.eye(shared.shape[0], dtype=bool)
    return Crowding(
        values=values,
        norm=linalg.root(jnp.sum(values * values)),
        largest_overlap=jnp.max(shared, initial=0, where=pairs),
        effective_rank=effective_rank(values),
        stable_rank=stable_rank(values),
        condition=_condition_of_nonzero(values),
    )


def sharing_scores(stack: AdapterStack) -> jax.Array:
    """Share of energy ``c_j = s_j^2 / sum(s^2)`` of each direction of stacked B.

    Pico (arXiv 2604.16826) multiplies direction j by ``1 / (1 + (T - 1) c_j)``. A score
    measures energy, not sharing: a strong direction of a single task scores high too.

    Returns:
      [min(m, K)], descending, adding up to 1; zeros where every B is zero.

    >>> from jaxmerge.stacks import stack_adapters
    >>> print(sharing_scores(stack_adapters([([[3.0], [4.0]], [[1.0]])])))
    [1.]
    """
    _, values, _ = linalg.svd(concatenate(stack).b)
    energy = values * values
    return linalg.divide(energy, jnp.sum(energy))


def _condition_of_nonzero(values: jax.Array) -> jax.Array:
    """The B of many adapters, or of similar ones, have no full rank side by side."""
    kept = linalg.nonzero_directions(values)
    smallest = jnp.min(jnp.where(kept, values, jnp.inf))
    return linalg.divide(values[0], jnp.where(kept[0], smallest, 0))
