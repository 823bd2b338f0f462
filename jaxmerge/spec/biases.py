"""The biases that some LoRA layers have, merged beside the updates."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmerge.spec.checks import checked_weights
from jaxmerge.streamed import described

if TYPE_CHECKING:
    import jax

    from jaxmerge.spec.pipeline import Pipeline
    from jaxmerge.types import AdapterStack


def merged_biases(
    pipeline: "Pipeline",
    biases: "Mapping[str, jax.Array]",
    stacks: "Mapping[str, AdapterStack]",
    weights: Any,
) -> "dict[str, jax.Array]":
    """See `jaxmerge.Pipeline.merge_biases`."""
    from jaxmerge.magnitudes import weighted_sum

    stacks = described(stacks)
    given = checked_weights(weights, stacks)
    averages = any(call.step.averages for call in pipeline.calls)
    summed = pipeline.linear and not averages
    merged = {}
    for module, bias in biases.items():
        share = pipeline.scale / (1 if summed else len(stacks[module].present))
        own = given[module] if isinstance(given, Mapping) else given
        each = np.full(bias.shape[0], share) if own is None else share * own
        merged[module] = weighted_sum(each, bias)
    return merged
