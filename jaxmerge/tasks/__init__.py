"""A base model on disk, and the tasks of its adapters: heads, data, batches.

`load_base` makes a pure function of a Hugging Face folder, `load_unlabeled` reads one
file of inputs for each adapter and `load_labels` the labels beside them, `task_heads`
gives the head of every task. `measure` gives statistics of the inputs of layers, and
`read_sample` what mergers need that run the model, `predictor` what a merge says of
every input.
"""

from jaxmerge.tasks.bases import Base, load_base
from jaxmerge.tasks.heads import task_heads
from jaxmerge.tasks.labels import load_labels
from jaxmerge.tasks.measure import measure, modules_ending
from jaxmerge.tasks.predict import predictor
from jaxmerge.tasks.sample import SampleFiles, model_sample, read_sample
from jaxmerge.tasks.unlabeled import Unlabeled, load_unlabeled

__all__ = [
    "Base",
    "SampleFiles",
    "Unlabeled",
    "load_base",
    "load_labels",
    "load_unlabeled",
    "measure",
    "model_sample",
    "modules_ending",
    "predictor",
    "read_sample",
    "task_heads",
]
