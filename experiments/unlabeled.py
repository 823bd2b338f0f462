"""Inputs without labels, for merges that learn from them or take their statistics."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jaxmerge as jm
from experiments.suite import Suite, batches, of_one_length
from jaxmerge.models import layer_weights, with_updates
from jaxmerge.stacks import task_updates
from jaxmerge.stats.moments import Statistics
from jaxmerge.tasks.bases import token_mask
from jaxmerge.tasks.unlabeled import task_batches

Stacks = Mapping[str, jm.AdapterStack]
TaskStatistics = dict[str, dict[str, Statistics]]  # task -> module -> of its inputs


def unlabeled_batches(
    suite: Suite, *, part: str = "validation", size: int, seed: int
) -> Iterator[dict[str, Any]]:
    """For ever a batch of every task, each task's inputs shuffled anew in every epoch.

    The shapes never change: texts are those of `of_one_length`.
    """
    inputs, seeds = {}, {}
    for index, task in enumerate(suite.tasks):
        inputs[task.name] = of_one_length(suite, task.load(part)).inputs
        seeds[task.name] = (seed, index)
    return task_batches(inputs, size=size, seeds=seeds)


def first_inputs(suite: Suite, *, rows: int) -> dict[str, Any]:
    """task -> the first of its validation inputs."""
    return {
        task.name: task.load("validation").first(rows).inputs for task in suite.tasks
    }


def input_statistics(
    suite: Suite,
    inputs: Mapping[str, Any],
    modules: Iterable[str],
    *,
    size: int,
    stacks: Stacks | None = None,
) -> TaskStatistics:
    """Of the inputs of some modules, in the base or with each task's own adapter.

    As `jaxmerge.tasks.measure`, in the experiments' batches.

    Args:
      suite: the base and the tasks.
      inputs: of every task.
      modules: names of layers.
      size: inputs in a batch.
      stacks: the adapters of the tasks.
    """
    base, modules = suite.base, list(modules)

    def apply(parts: Any, inputs: Any) -> Any:
        params, updates = parts
        return with_updates(base.apply, updates)(params, inputs)

    mask = token_mask(base, next(iter(inputs.values())), modules)
    gather = jm.collector(apply, modules=modules, mask=mask)
    found = {}
    for index, (task, of_task) in enumerate(inputs.items()):
        own = {} if stacks is None else task_updates(stacks, index)
        found[task] = gather((base.params, own), batches(suite, of_task, size))
    return found


def model_sample(suite: Suite, stacks: Stacks, *, rows: int) -> jm.ModelSample:
    """The model and inputs of every task, as IterIS takes them."""
    base, inputs = suite.base, first_inputs(suite, rows=rows)
    found = [list(batches(suite, of_task, rows)) for of_task in inputs.values()]
    mask = token_mask(base, next(iter(inputs.values())), list(stacks))
    weights = layer_weights(base.params, stacks, apply=base.apply, batch=found[0][0])
    return jm.ModelSample(base.apply, base.params, found, mask, weights)
