"""Inputs without labels, for merges that learn from them or take their statistics."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from experiments.suite import Split, Suite, narrow, of_one_length
from jaxmerge.io import Adapters
from jaxmerge.stats.moments import Statistics
from jaxmerge.tasks import Unlabeled, measure
from jaxmerge.tasks.unlabeled import task_batches


def learning_examples(
    suite: Suite,
    *,
    part: str = "validation",
    rows: int | None = None,
    tokens: int | None = None,
) -> dict[str, Split]:
    """task -> the first of its examples, in shapes that never change.

    Texts are those of `of_one_length`.
    """
    return {
        task.name: of_one_length(suite, task.read(part), tokens=tokens).first(rows)
        for task in suite.tasks
    }


def shuffled_batches(
    inputs: Mapping[str, Any], *, size: int, seed: int
) -> Iterator[dict[str, Any]]:
    """For ever a batch of every task, shuffled anew in every epoch of the task."""
    seeds = {task: (seed, index) for index, task in enumerate(inputs)}
    return task_batches(inputs, size=size, seeds=seeds)


def some_inputs(
    suite: Suite, *, part: str = "validation", rows: int, sample: int = 0
) -> dict[str, Any]:
    """task -> so many of its inputs: the first ones, or another sample of them."""
    found = {}
    for index, task in enumerate(suite.tasks):
        inputs = task.read(part).inputs
        order = np.arange(len(jax.tree.leaves(inputs)[0]))
        if sample:
            order = np.random.default_rng((sample, index)).permutation(order)
        found[task.name] = jax.tree.map(lambda x, at=order[:rows]: x[at], inputs)
    return found


def input_statistics(
    suite: Suite,
    inputs: Mapping[str, Any],
    modules: Iterable[str],
    *,
    size: int,
    adapters: Adapters | None = None,
) -> dict[str, dict[str, Statistics]]:
    """task -> module -> statistics, see `jaxmerge.tasks.measure`.

    Args:
      suite: the base and the tasks.
      inputs: of every task.
      modules: names of layers.
      size: inputs in a batch.
      adapters: of the tasks; without them the inputs are those in the base.
    """
    unlabeled = Unlabeled(dict(inputs), files=(), rows={}, notes=())
    given = {"adapters": adapters, "batch": size, "crop": narrow}
    return dict(measure(suite.base, unlabeled, list(modules), **given))
