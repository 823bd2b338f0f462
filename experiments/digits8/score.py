"""Accuracies of merged models: all tasks, and a whole grid of scales, in one call."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.digits8.model import Exam, apply, correct_answers
from jaxmerge.models import add_to_params
from jaxmerge.types import Update
from jaxmerge.updates import dense


def accuracies(
    params: Any, updates: Mapping[str, Update], scales: Any, exam: Exam
) -> np.ndarray:
    """Accuracy of ``W0 + scale * update``, for every scale and task: [scales, tasks].

    Compiled once for an exam and a number of scales, whatever the merge was: updates
    are written into the weights, where their rank no longer matters.
    """
    whole = {name: dense(update) for name, update in updates.items()}
    counts = _counts(params, whole, jnp.asarray(scales, jnp.float32), exam)
    return np.asarray(counts) / exam.labels.shape[1]


@jax.jit
def _counts(params, updates, scales, exam):
    def count(by):
        scaled = {name: by * update for name, update in updates.items()}
        merged = add_to_params(params, scaled, apply=apply, batch=exam.images)
        return correct_answers(apply(merged, exam.images), exam)

    return jax.lax.map(count, scales)
