"""Pico (arXiv 2604.16826): calibrate over-shared output directions before a merge."""

from typing import Any

import jax.numpy as jnp

from jaxmerge import linalg
from jaxmerge.doors import check_adapters_of, check_stack, check_update
from jaxmerge.stacks import concatenate, near_norms
from jaxmerge.types import AdapterStack, Calibration, Merger, Update
from jaxmerge.updates import calibrated, near_one, scale, squares_root


def calibrate(stack: AdapterStack, **extra: Any) -> AdapterStack:
    """Shrinks the output directions that hold most of the energy of all B together.

    With ``[B_1 .. B_T] = U diag(s) V^T``, direction j has the share
    ``c_j = s_j^2 / sum(s^2)`` and is multiplied by ``1 / (1 + (T - 1) c_j)``:
    ``B_t <- B_t + U diag(alpha - 1) U^T B_t``. A is untouched.

    Args:
      stack: T adapters of one module; absent tasks do not count in T.

    Returns:
      AdapterStack with calibrated ``b``.

    Cost: O(m K^2); no m x m operator is formed.

    The result depends on the factors, not on the updates alone: moving a scale from A
    to B changes it. `jaxmerge.balanced` removes that freedom first.
    """
    check_stack(calibrate, stack, extra)
    b = concatenate(stack).b
    u, s, _ = linalg.svd(b * linalg.unit_power(b))
    energy = s * s
    share = linalg.divide(energy, jnp.sum(energy))
    alpha = 1 / (1 + (len(stack.present) - 1) * share)
    onto = linalg.einsum("mk,tmr->tkr", u, stack.b)
    change = linalg.einsum("mk,k,tkr->tmr", u, alpha - 1, onto)
    return stack.replace(b=stack.b + change)


def restore_norm(update: Update, *, stack: AdapterStack, **extra: Any) -> Update:
    """Rescales a merged update to the mean Frobenius norm of the single updates.

    ``gamma = (sum_t ||B_t A_t|| / T) / ||update||``; an update that is zero stays zero.
    """
    check_update(restore_norm, update, extra)
    check_adapters_of(restore_norm, update, stack)
    near, unit = near_one(update)
    norms, units = near_norms(stack)
    # in units of the update, so that neither norm has to be in range by itself
    norms = norms * (unit.b / units.b) * (unit.a / units.a)
    wanted = jnp.sum(norms) / len(stack.present)
    return scale(update, by=linalg.divide(wanted, squares_root(near)))


CALIBRATED = Calibration(before=calibrate)
PICO = Calibration(before=calibrate, after=restore_norm)


def pico(merger: Merger) -> Merger:
    """Pico around any merger: calibrate, merge, restore the norm.

    The merged update is rescaled to the mean Frobenius norm of the original updates
    (`restore_norm`), so a scale inside ``merger`` has no effect; scale after it.

    Source: arXiv 2604.16826, algorithm as in the paper. Deviations: the folder mode
    of the official code restores the norm of each adapter before the merge instead;
    here, as in the paper, the norm of the merged update is restored.

    >>> from jaxmerge.mergers.linear import concat
    >>> from jaxmerge.stacks import stack_adapters
    >>> from jaxmerge.updates import dense
    >>> same = ([[2.0]], [[1.0]])
    >>> print(dense(pico(concat)(stack_adapters([same, same]))).round(4))
    [[2.]]
    """
    return calibrated(merger, PICO)
