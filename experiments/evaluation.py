"""Accuracy of merged models on the tasks of a suite."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.suite import Split, Suite, batches
from jaxmerge.models import add_to_params
from jaxmerge.types import Update

Batch = tuple[Any, np.ndarray]  # inputs, and labels of which -1 stands for padding


class Exam(NamedTuple):
    """The examples of one part of the data, batched once for all merged models."""

    suite: Suite
    batches: dict[str, list[Batch]]
    features: Any  # compiled (params, inputs) -> features


def make_exam(
    suite: Suite, part: str, *, rows: int | None = None, batch: int = 64
) -> Exam:
    """Batches the first ``rows`` examples of every task; the last one is filled up."""
    found = {}
    for task in suite.tasks:
        whole = task.load(part)
        split = Split(*jax.tree.map(lambda x: x[:rows], tuple(whole)))
        found[task.name] = [
            _filled(inputs, split.labels[chosen], batch)
            for inputs, chosen in batches(suite, split, batch)
        ]
    return Exam(suite, found, jax.jit(suite.apply))


def accuracies(
    exam: Exam, updates: Mapping[str, Update], tasks: tuple[str, ...] | None = None
) -> dict[str, float]:
    """Share of right answers of ``W0 + update`` with the head of each task."""
    suite = exam.suite
    inputs, _ = next(iter(exam.batches.values()))[0]
    merged = add_to_params(suite.params, updates, apply=suite.apply, batch=inputs)
    found = {}
    for task in suite.tasks:
        if tasks is not None and task.name not in tasks:
            continue
        right = total = 0
        for inputs, labels in exam.batches[task.name]:
            scores = suite.logits(task.head, exam.features(merged, inputs))
            right += int(np.sum(np.asarray(scores).argmax(-1) == labels))
            total += int(np.sum(labels >= 0))
        found[task.name] = right / total
    return found


def own_updates(stacks: Mapping[str, Any], index: int) -> dict[str, Update]:
    """The updates of one adapter alone."""
    return {name: jnp.matmul(s.b[index], s.a[index]) for name, s in stacks.items()}


def _filled(inputs: Any, labels: np.ndarray, size: int) -> Batch:
    missing = size - len(labels)
    fill = partial(_repeat_first, count=missing)
    return jax.tree.map(fill, inputs), np.pad(labels, (0, missing), constant_values=-1)


def _repeat_first(x: np.ndarray, count: int) -> np.ndarray:
    return np.concatenate([x, np.repeat(x[:1], count, axis=0)])
