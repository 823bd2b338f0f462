"""Fitting the coefficients of learned merges through a model."""

from jaxmerge.fitting.entropies import entropies
from jaxmerge.fitting.loop import Fitted, History, Progress, fit
from jaxmerge.fitting.null_space import null_space_ratios
from jaxmerge.fitting.step import single_adapter_losses

__all__ = [
    "Fitted",
    "History",
    "Progress",
    "entropies",
    "fit",
    "null_space_ratios",
    "single_adapter_losses",
]
