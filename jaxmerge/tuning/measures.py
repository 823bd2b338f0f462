"""What merges are worth on the inputs of every task, with labels or without.

A measure gives for several multiples of one merge the value of each task. Those without
labels are the losses of `jaxmerge.learn`, over all inputs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.io import Adapters
from jaxmerge.learning.distillation import Taught
from jaxmerge.learning.null_space import null_space_ratios
from jaxmerge.learning.objectives import (
    cosine_distance,
    divergence,
    entropy,
    mean_prediction_entropy,
)
from jaxmerge.learning.step import Losses
from jaxmerge.learning.teachers import ask_teachers
from jaxmerge.tasks.base_layers import token_mask
from jaxmerge.tasks.bases import Base
from jaxmerge.tasks.batching import batch_of, row_groups
from jaxmerge.tasks.next_tokens import counted_tokens
from jaxmerge.tasks.predict import sweep_predictor
from jaxmerge.tasks.unlabeled import Unlabeled
from jaxmerge.types import Update
from jaxmerge.updates import scale

Measure = Callable[[Mapping[str, Update], Sequence[float]], list[dict[str, float]]]
OfAnswers = Callable[[jax.Array, jax.Array], jax.Array]  # own, merged -> a number


def loss_of_answers(
    loss: str, *, logit_scale: float = 1.0, temperature: float = 1.0
) -> OfAnswers:
    """A loss of `jaxmerge.learn` as a function of own and merged answers [N, ...].

    Args:
      loss: "distillation", "features", "entropy" or "information".
      logit_scale: multiplies the logits.
      temperature: of the predictions that distillation compares.
    """

    def distilled(own: jax.Array, merged: jax.Array) -> jax.Array:
        pair = (logit_scale * own, logit_scale * merged)
        return divergence(*pair, temperature=temperature)

    def sure(own: jax.Array, merged: jax.Array) -> jax.Array:
        return entropy(merged, logit_scale=logit_scale)

    def informed(own: jax.Array, merged: jax.Array) -> jax.Array:
        spread = mean_prediction_entropy(merged, logit_scale=logit_scale)
        return sure(own, merged) - spread

    table: dict[str, OfAnswers] = {
        "distillation": distilled,
        "features": cosine_distance,
        "entropy": sure,
        "information": informed,
    }
    return table[loss]


def measure_answers(
    loss: OfAnswers,
    base: Base,
    adapters: Adapters,
    heads: Mapping[str, Any],
    unlabeled: Unlabeled,
    *,
    batch: int,
) -> Measure:
    """A loss of what the merged model says, beside what the own adapters say.

    Args:
      loss: see `loss_of_answers`.
      base: the model.
      adapters: T adapters of it.
      heads: task -> head; empty for losses of features.
      unlabeled: inputs of every task.
      batch: inputs that go through the model at a time.
    """
    sweep, run = sweep_predictor(base, heads, unlabeled, batch=batch), jax.jit(loss)
    own = ask_teachers(base, adapters, heads, unlabeled, batch=batch)

    def measure(
        updates: Mapping[str, Update], factors: Sequence[float]
    ) -> list[dict[str, float]]:
        found: list[dict[str, float]] = [{} for _ in factors]
        for task, teacher in own.items():
            for values, merged in zip(
                found, sweep(task, updates, factors), strict=True
            ):
                values[task] = float(run(teacher, merged))
        return found

    return measure


def measure_accuracy(
    base: Base,
    adapters: Adapters,
    heads: Mapping[str, Any],
    unlabeled: Unlabeled,
    labels: Mapping[str, np.ndarray],
    *,
    batch: int,
) -> Measure:
    """Accuracy divided by that of the task's own adapter, as `jaxmerge.evaluate`."""
    sweep = sweep_predictor(base, heads, unlabeled, batch=batch)
    own = {
        task: np.mean(answers.argmax(axis=-1) == labels[task])
        for task, answers in ask_teachers(
            base, adapters, heads, unlabeled, batch=batch
        ).items()
    }

    def measure(
        updates: Mapping[str, Update], factors: Sequence[float]
    ) -> list[dict[str, float]]:
        found: list[dict[str, float]] = [{} for _ in factors]
        for task, classes in labels.items():
            for values, merged in zip(
                found, sweep(task, updates, factors), strict=True
            ):
                right = np.mean(merged.argmax(axis=-1) == classes)
                broken = not np.isfinite(merged).all()
                values[task] = np.nan if broken else _ratio(right, own[task])
        return found

    return measure


def measure_null_spaces(
    base: Base, adapters: Adapters, unlabeled: Unlabeled, *, batch: int
) -> Measure:
    """`jaxmerge.null_space_ratios` of all inputs."""
    some = next(iter(unlabeled.inputs.values()))
    mask = token_mask(base, some, list(adapters.stacks))
    losses = null_space_ratios(base.apply, adapters.names, adapters.stacks, mask=mask)
    return measure_losses(losses, base, unlabeled, batch=batch)


def measure_losses(
    losses: Losses,
    base: Base,
    unlabeled: Unlabeled,
    *,
    batch: int,
    answers: Mapping[str, Any] | None = None,
) -> Measure:
    """Losses as `jaxmerge.fit` takes them, means over batches.

    Batches count by their numbers of inputs, for causal language models by the tokens
    that count in them.

    Args:
      losses: of all tasks.
      base: the model.
      unlabeled: inputs of every task.
      batch: inputs that go through the model at a time.
      answers: task -> what its own adapter says, for losses with a teacher.
    """

    def batches(task: str) -> Iterator[tuple[Any, int]]:
        inputs = unlabeled.inputs[task]
        for rows in row_groups(base, inputs, batch):
            some = batch_of(base, inputs, rows)
            size = int(counted_tokens(some).sum()) if base.causal else len(rows)
            if answers is not None:
                own = jax.tree.map(lambda x, r=rows: x[r], answers[task])
                some = Taught(some, own)
            yield some, size

    @partial(jax.jit, static_argnums=0)
    def run(
        task: str,
        params: Any,
        updates: Mapping[str, Update],
        factors: jax.Array,
        inputs: Any,
    ) -> jax.Array:
        def multiple(by: jax.Array) -> jax.Array:
            scaled = {name: scale(update, by=by) for name, update in updates.items()}
            return losses(params, scaled, {task: inputs})[task]

        return jax.lax.map(multiple, factors)

    def measure(
        updates: Mapping[str, Update], factors: Sequence[float]
    ) -> list[dict[str, float]]:
        each, found = jnp.asarray(factors, jnp.float32), {}
        for task in unlabeled.inputs:
            given, values, sizes = (task, base.params, updates, each), [], []
            for some, size in batches(task):
                values.append(np.asarray(run(*given, some)))
                sizes.append(size)
            found[task] = np.average(values, axis=0, weights=sizes)
        return [
            {task: float(values[index]) for task, values in found.items()}
            for index in range(len(factors))
        ]

    return measure


def _ratio(one: Any, other: Any) -> float:
    return float(one / other) if other else 0.0
