"""What a model says of every input of a task."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxmerge.models import with_updates
from jaxmerge.refusals import Refusal
from jaxmerge.tasks.bases import Base
from jaxmerge.tasks.batching import batch_of, row_groups
from jaxmerge.tasks.unlabeled import Unlabeled
from jaxmerge.types import Update

Predict = Callable[[str, Mapping[str, Update]], np.ndarray]
Report = Callable[[str, int], None]


def predictor(
    base: Base,
    heads: Mapping[str, Any],
    unlabeled: Unlabeled,
    *,
    batch: int = 64,
    report: Report | None = None,
) -> Predict:
    """A function from a task and updates to predictions of all its inputs, in order.

    Args:
      base: the model.
      heads: task -> head, see `task_heads`; empty for features instead of logits.
      unlabeled: inputs of every task.
      batch: inputs that go through the model at a time.
      report: called with a task and the inputs of it that were read, after each batch.

    Returns:
      ``(task, updates) -> logits [N, classes]``, or features [N, d] without heads, in
      float32. It raises a `Refusal` for what is not finite.
    """

    @jax.jit
    def features(params: Any, updates: Mapping[str, Update], inputs: Any) -> jax.Array:
        return with_updates(base.apply, updates)(params, inputs)

    def predict(task: str, updates: Mapping[str, Update]) -> np.ndarray:
        own, count = unlabeled.inputs[task], unlabeled.count(task)
        found: np.ndarray | None = None
        for rows in row_groups(base, own, batch):
            filled_up = np.resize(rows, min(batch, count))  # all batches of one size
            answers = features(base.params, updates, batch_of(base, own, filled_up))
            if heads:
                answers = base.logits(heads[task], answers)
            if found is None:
                found = np.empty((count, *answers.shape[1:]), np.float32)
            found[rows] = np.asarray(answers)[: len(rows)]
            if report is not None:
                report(task, len(rows))
        if found is None:
            raise Refusal(f"{base.folder}: {task} has no inputs")
        if not np.isfinite(found).all():
            whose = f"with the adapter of {task}" if updates else "without adapters"
            raise Refusal(
                f"{base.folder}: {whose} the logits of {task} are not finite; look for "
                "weights that are far too large"
            )
        return found

    return predict
