"""All diagnostics of a module in one program."""

from typing import NamedTuple

import jax

from jaxmerge import linalg
from jaxmerge.diagnostics.conflict import (
    SignConflict,
    norm_ratio,
    sign_conflict,
    task_cosines,
)
from jaxmerge.diagnostics.crowding import Crowding, crowding
from jaxmerge.diagnostics.overlap import Overlaps, overlaps
from jaxmerge.diagnostics.ranks import EffectiveRanks, effective_ranks, energy_kept
from jaxmerge.mergers.pico import calibrate
from jaxmerge.stacks import concatenate, task_norms
from jaxmerge.types import AdapterStack
from jaxmerge.updates import norm


class Diagnosis(NamedTuple):
    """What the functions of this package say about one module.

    Attributes:
      norms: [T], Frobenius norm of every update.
      sum_norm: [], of their sum, task arithmetic.
      norm_ratio: [], of the sum.
      ranks: effective ranks.
      overlaps: of the column spaces of B and the row spaces of A.
      before: spectrum of stacked B.
      after: the same, calibrated by Pico.
      signs: shares of conflicting signs.
      cosines: [T, T], of the updates.
      energy: [min(m, n, K)], share that each rank keeps of the sum.
      task_energy: [T, min(m, n, R)], share that each rank keeps of every update.
    """

    norms: jax.Array
    sum_norm: jax.Array
    norm_ratio: jax.Array
    ranks: EffectiveRanks
    overlaps: Overlaps
    before: Crowding
    after: Crowding
    signs: SignConflict
    cosines: jax.Array
    energy: jax.Array
    task_energy: jax.Array


def diagnose(stack: AdapterStack) -> Diagnosis:
    """All diagnostics of one module that need no data.

    Args:
      stack: T adapters of one module.

    Returns:
      Diagnosis, finite for zero, duplicate and rank-deficient adapters and for T = 1.

    >>> from jaxmerge.mapping import map_modules
    >>> from jaxmerge.stacks import stack_adapters
    >>> stacks = {"q": stack_adapters([([[3.0]], [[1.0]]), ([[1.0]], [[1.0]])])}
    >>> print(map_modules(diagnose, stacks)["q"].norm_ratio)
    2.0
    """
    total = concatenate(stack)
    return Diagnosis(
        norms=task_norms(stack),
        sum_norm=norm(total),
        norm_ratio=norm_ratio(stack, total),
        ranks=effective_ranks(stack),
        overlaps=overlaps(stack),
        before=crowding(stack),
        after=crowding(calibrate(stack)),
        signs=sign_conflict(stack),
        cosines=task_cosines(stack),
        energy=energy_kept(linalg.svd_of_product(*total)[1]),
        task_energy=energy_kept(linalg.svd_of_product(stack.b, stack.a)[1]),
    )
