"""What a model says of every input of a task."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.models import with_updates
from jaxmerge.refusals import Refusal
from jaxmerge.tasks.bases import Base
from jaxmerge.tasks.batching import outputs_of
from jaxmerge.tasks.unlabeled import Unlabeled
from jaxmerge.types import Update
from jaxmerge.updates import scale

Predict = Callable[[str, Mapping[str, Update]], np.ndarray]
Sweep = Callable[[str, Mapping[str, Update], Sequence[float]], np.ndarray]
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
        def answers(inputs: Any) -> jax.Array:
            found = features(base.params, updates, inputs)
            return base.logits(heads[task], found) if heads else found

        own, told = unlabeled.inputs[task], None
        if report is not None:
            told = partial(report, task)
        found = outputs_of(base, own, batch, answers, report=told).astype(np.float32)
        if not np.isfinite(found).all():
            whose = f"with the adapter of {task}" if updates else "without adapters"
            raise Refusal(
                f"{base.folder}: {whose} the logits of {task} are not finite; look for "
                "weights that are far too large"
            )
        return found

    return predict


def sweep_predictor(
    base: Base, heads: Mapping[str, Any], unlabeled: Unlabeled, *, batch: int = 64
) -> Sweep:
    """The same for several multiples of one merge, in one compiled call for a batch.

    One multiple is in memory at a time, so a sweep needs the memory of one merge.

    Args:
      base: see `predictor`, and so ``heads``, ``unlabeled`` and ``batch``.

    Returns:
      ``(task, updates, factors) -> logits [S, N, classes]``, or features [S, N, d]
      without heads, in float32; what is not finite is not refused.
    """

    @jax.jit
    def features(
        params: Any, updates: Mapping[str, Update], inputs: Any, factors: jax.Array
    ) -> jax.Array:
        def multiple(by: jax.Array) -> jax.Array:
            scaled = {name: scale(update, by=by) for name, update in updates.items()}
            return with_updates(base.apply, scaled)(params, inputs)

        return jnp.moveaxis(jax.lax.map(multiple, factors), 0, 1)

    def predict(
        task: str, updates: Mapping[str, Update], factors: Sequence[float]
    ) -> np.ndarray:
        each = jnp.asarray(factors, jnp.float32)

        def answers(inputs: Any) -> jax.Array:
            found = features(base.params, updates, inputs, each)
            return base.logits(heads[task], found) if heads else found

        found = outputs_of(base, unlabeled.inputs[task], batch, answers)
        return np.moveaxis(found.astype(np.float32), 1, 0)

    return predict
