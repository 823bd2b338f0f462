"""Fitting the coefficients of learned merges through a model."""

from jaxmerge.learning.entropies import entropies
from jaxmerge.learning.fit import Fitted, History, Progress, fit
from jaxmerge.learning.null_space import null_space_ratios
from jaxmerge.learning.step import single_adapter_losses

__all__ = [
    "Fitted",
    "History",
    "Progress",
    "entropies",
    "fit",
    "null_space_ratios",
    "single_adapter_losses",
]
