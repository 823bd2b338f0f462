"""Learned merges from files: a model folder, adapters, and unlabeled data.

`load_base` makes a pure function of a Hugging Face folder, `load_unlabeled` reads one
file of inputs for each adapter, and `learn` fits a `Recipe` with both. `alone` measures
each adapter against its base, with labels where `load_labels` finds them, and
`reactions` how the losses of all tasks depend on the coefficients of a merge. `measure`
gives statistics of the inputs of layers, and `read_sample` what mergers need that run
the model.
"""

from jaxmerge.learning.baseline import Standing, alone
from jaxmerge.learning.bases import Base, load_base
from jaxmerge.learning.heads import task_heads
from jaxmerge.learning.jacobian import Reactions, reactions
from jaxmerge.learning.labels import load_labels
from jaxmerge.learning.measurement import measure, modules_ending
from jaxmerge.learning.recipe import METHODS, OBJECTIVES, Recipe
from jaxmerge.learning.run import Outcome, learn
from jaxmerge.learning.sample import SampleFiles, read_sample
from jaxmerge.learning.unlabeled import Unlabeled, load_unlabeled

__all__ = [
    "METHODS",
    "OBJECTIVES",
    "Base",
    "Outcome",
    "Reactions",
    "Recipe",
    "SampleFiles",
    "Standing",
    "Unlabeled",
    "alone",
    "learn",
    "load_base",
    "load_labels",
    "load_unlabeled",
    "measure",
    "modules_ending",
    "reactions",
    "read_sample",
    "task_heads",
]
