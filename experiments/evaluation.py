"""Accuracy of merged models on the tasks of a suite."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.suite import Split, Suite, narrow
from jaxmerge.models import add_to_params, with_updates
from jaxmerge.stacks import task_updates
from jaxmerge.tasks.batching import outputs_of
from jaxmerge.types import AdapterStack, RoutedCores, Update


class Exam(NamedTuple):
    """The examples of one part of the data, for all merged models."""

    suite: Suite
    splits: dict[str, Split]
    batch: int
    features: Any  # compiled (params, inputs) -> features
    routed: Any  # compiled (params, updates, inputs) -> features


def make_exam(
    suite: Suite, part: str, *, rows: int | None = None, batch: int = 64
) -> Exam:
    """Reads the first ``rows`` examples of every task."""
    splits = {task.name: task.read(part).first(rows) for task in suite.tasks}
    apply = suite.base.apply

    @jax.jit
    def routed(params: Any, updates: Any, inputs: Any) -> Any:
        return with_updates(apply, updates)(params, inputs)

    return Exam(suite, splits, batch, jax.jit(apply), routed)


def make_exams(suite: Suite, sizes: Mapping[str, int], batch: int) -> dict[str, Exam]:
    """Exams by part, each of so many examples of every task at most."""
    return {
        part: make_exam(suite, part, rows=rows, batch=batch)
        for part, rows in sizes.items()
    }


def hits(
    exam: Exam,
    updates: Mapping[str, Update | RoutedCores],
    tasks: tuple[str, ...] | None = None,
) -> dict[str, np.ndarray]:
    """Which answers of ``W0 + update`` with the head of each task are right, [N].

    Routed cores run beside the weights.
    """
    base, found = exam.suite.base, {}
    features = partial(exam.routed, base.params, updates)
    fixed = {m: x for m, x in updates.items() if not isinstance(x, RoutedCores)}
    if len(fixed) == len(updates):
        some = next(iter(exam.splits.values())).first(1).inputs
        merged = add_to_params(base.params, fixed, apply=base.apply, batch=some)
        features = partial(exam.features, merged)

    def logits(head: Any, inputs: Any) -> jax.Array:
        return base.logits(head, features(inputs))

    for task in exam.suite.tasks:
        if tasks is None or task.name in tasks:
            inputs, labels = exam.splits[task.name]
            answer = partial(logits, task.head)
            scores = outputs_of(base, inputs, exam.batch, answer, crop=narrow)
            found[task.name] = scores.argmax(-1) == labels
    return found


def accuracies(
    exam: Exam, updates: Mapping[str, Update], tasks: tuple[str, ...] | None = None
) -> dict[str, float]:
    """Share of right answers of ``W0 + update`` with the head of each task."""
    return shares(hits(exam, updates, tasks))


def shares(right: Mapping[str, np.ndarray]) -> dict[str, float]:
    """task -> accuracy."""
    return {task: float(found.mean()) for task, found in right.items()}


def own_hits(exam: Exam, stacks: Mapping[str, AdapterStack]) -> dict[str, np.ndarray]:
    """Which answers of every task with its own adapter alone are right, [N]."""
    found = {}
    for index, task in enumerate(exam.suite.tasks):
        found |= hits(exam, task_updates(stacks, index), (task.name,))
    return found


def own_accuracies(exam: Exam, stacks: Mapping[str, AdapterStack]) -> dict[str, float]:
    """Accuracy of every task with its own adapter alone."""
    return shares(own_hits(exam, stacks))
