"""All diagnostics of a module in one program."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxmerge import linalg
from jaxmerge.diagnostics.conflict import (
    SignConflict,
    norm_ratio,
    sign_conflict,
    task_cosines,
)
from jaxmerge.diagnostics.crowding import Crowding, crowding, crowding_of
from jaxmerge.diagnostics.overlap import Overlaps, overlaps_within
from jaxmerge.diagnostics.ranks import EffectiveRanks, effective_ranks_of, energy_kept
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
      spectra: [T, min(m, n, R)], singular values of every update.
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
    spectra: jax.Array


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
    m, n = stack.b.shape[1], stack.a.shape[2]
    return diagnose_within(in_spans(stack), sign_conflict(stack), m, n)


def diagnose_each(
    stacks: Mapping[str, AdapterStack], *, report: Callable[[], None] | None = None
) -> dict[str, Diagnosis]:
    """`diagnose` of every module of a model, as numpy arrays in float64.

    A module is taken at a time, so that no program depends on how many there are, and
    all but the largest matrix products work on coordinates of one shape.

    Args:
      stacks: module -> its T adapters.
      report: called after every module.
    """
    found: dict[str, Diagnosis] = {}
    for name, stack in stacks.items():
        m, n = stack.b.shape[1], stack.a.shape[2]
        measured = _diagnose_within(*_spans_and_signs(stack), m, n)
        found[name] = jax.tree.map(
            lambda x: np.asarray(x, np.float64), jax.device_get(measured)
        )
        if report is not None:
            report()
    return found


def in_spans(stack: AdapterStack) -> AdapterStack:
    """The adapters in coordinates of what all B, and all A, span together.

    Norms, angles and spectra stay what they are, and the shapes of all modules become
    one, at most [T, K, R] and [T, R, K]: so one program serves a whole model.
    """
    b, a, ranks = stack.b, stack.a, stack.ranks
    tasks, m, rank = b.shape
    if m > tasks * rank:
        b = linalg.triangle(jnp.moveaxis(b, 0, 1).reshape(m, tasks * rank))
        b = jnp.moveaxis(b.reshape(-1, tasks, rank), 1, 0)
    if a.shape[2] > tasks * rank:
        a = linalg.triangle(a.reshape(tasks * rank, -1).T).T.reshape(tasks, rank, -1)
    return AdapterStack(a=a, b=b, ranks=ranks)


def diagnose_within(
    stack: AdapterStack, signs: SignConflict, m: ArrayLike, n: ArrayLike
) -> Diagnosis:
    """`diagnose`, of adapters `in_spans` of m outputs and n inputs.

    Args:
      stack: T adapters of one module.
      signs: counted in full space, as coordinates have other signs.
      m: outputs of the module.
      n: inputs of the module.
    """
    total = concatenate(stack)
    spectra = linalg.svd_of_product(stack.b, stack.a)[1]
    shared = overlaps_within(stack, m, n)
    return Diagnosis(
        norms=task_norms(stack),
        sum_norm=norm(total),
        norm_ratio=norm_ratio(stack, total),
        ranks=effective_ranks_of(stack, spectra),
        overlaps=shared,
        before=crowding_of(stack, shared.b),
        after=crowding(calibrate(stack)),
        signs=signs,
        cosines=task_cosines(stack),
        energy=energy_kept(linalg.svd_of_product(*total)[1]),
        task_energy=energy_kept(spectra),
        spectra=spectra,
    )


@jax.jit
def _spans_and_signs(stack: AdapterStack) -> tuple[AdapterStack, SignConflict]:
    return in_spans(stack), sign_conflict(stack)


_diagnose_within = jax.jit(diagnose_within)
