"""EMR-Merging (arXiv 2405.17461): one unified update, and masks to undo it per task."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmerge.doors import check_matrices, check_shapes
from jaxmerge.refusals import Refusal


def emr(matrices: jax.Array, **extra: Any) -> jax.Array:
    """The unified update: for each entry the largest magnitude of the elected sign.

    The sign is that of the sum over tasks, negative where the sum is 0 as in the
    official code.

    Args:
      matrices: [T, p, q].

    Returns:
      [p, q].

    >>> print(emr(jnp.array([[[1.0, -2.0]], [[3.0, 1.0]]])))
    [[ 3. -2.]]
    """
    check_matrices(emr, matrices, extra)
    positive = jnp.sum(matrices, axis=0) > 0
    largest = jnp.maximum(jnp.max(matrices, axis=0), 0)
    smallest = jnp.minimum(jnp.min(matrices, axis=0), 0)
    return jnp.where(positive, largest, smallest)


class EmrParts(NamedTuple):
    """What EMR keeps beside the unified update of one module.

    The update of task t is ``rescaler[t] * masks[t] * unified``, with the rescalers
    of the whole model (`emr_rescalers`).
    """

    unified: jax.Array  # [p, q]
    masks: jax.Array  # [T, p, q], bool: where the task has the sign of the unified
    magnitudes: jax.Array  # [T], mean magnitude of the task
    masked_magnitudes: jax.Array  # [T], mean magnitude of masks[t] * unified


def emr_parts(matrices: jax.Array) -> EmrParts:
    """Unified update, masks and mean magnitudes of one module, from [T, p, q]."""
    check_matrices(emr_parts, matrices)
    unified = emr(matrices)
    masks = matrices * unified[None] > 0
    return EmrParts(
        unified=unified,
        masks=masks,
        magnitudes=jnp.mean(jnp.abs(matrices), axis=(1, 2)),
        masked_magnitudes=jnp.mean(
            jnp.where(masks, jnp.abs(unified)[None], 0), axis=(1, 2)
        ),
    )


def emr_rescalers(parts: dict[str, EmrParts]) -> jax.Array:
    """Rescaler of each task over all modules, [T]; 0 for a task that is zero.

    ``sum_modules mean |D_t| / sum_modules mean |masks_t * unified|``: as in the
    official code every module counts the same whatever its size, where the paper's
    formula is the ratio of two norms over all entries.
    """
    _check_parts(parts)
    magnitudes = sum(part.magnitudes for part in parts.values())
    masked = sum(part.masked_magnitudes for part in parts.values())
    none = (masked == 0) & jnp.isfinite(magnitudes)
    return jnp.where(none, 0, magnitudes / jnp.where(none, 1, masked))


def _check_parts(parts: Any) -> None:
    """Refuses what are no parts of modules, of the same tasks."""
    if not isinstance(parts, dict) or not all(
        isinstance(part, EmrParts) for part in parts.values()
    ):
        raise Refusal(
            "emr_rescalers takes module -> parts, those that emr_parts makes of the "
            "matrices of each module"
        )
    axes = {f"parts of {m}": (part.magnitudes, "[T]") for m, part in parts.items()}
    check_shapes(emr_rescalers, **axes)
