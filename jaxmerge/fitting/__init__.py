"""Fitting the coefficients of learned merges through a model."""

from jaxmerge.fitting.loop import Fitted, History, Progress, fit
from jaxmerge.fitting.step import single_adapter_losses

__all__ = ["Fitted", "History", "Progress", "fit", "single_adapter_losses"]
