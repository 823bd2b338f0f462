"""Pipelines as text: `parse` gives a `Pipeline` that merges a whole model.

Importing this package does not import JAX; running a pipeline does.
"""

from jaxmerge.spec.checks import (
    check_densities,
    check_statistics,
    check_weighted,
    check_weights,
)
from jaxmerge.spec.grammar import PipelineError
from jaxmerge.spec.layerwise import layer_of, module_values
from jaxmerge.spec.own import register_step
from jaxmerge.spec.pipeline import Pipeline, parse
from jaxmerge.spec.presets import PRESETS, method_markdown, method_table
from jaxmerge.spec.steps import STEPS

__all__ = [
    "PRESETS",
    "STEPS",
    "Pipeline",
    "PipelineError",
    "check_densities",
    "check_statistics",
    "check_weighted",
    "check_weights",
    "layer_of",
    "method_markdown",
    "method_table",
    "module_values",
    "parse",
    "register_step",
]
