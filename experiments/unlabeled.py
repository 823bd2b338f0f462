"""Inputs without labels, for merges that learn from them or take their statistics."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax

import jaxmerge as jm
from experiments.suite import Split, Suite, batches, of_one_length
from jaxmerge.models import layer_weights, with_updates
from jaxmerge.stacks import task_updates
from jaxmerge.stats.moments import Statistics
from jaxmerge.tasks.unlabeled import shuffled

Stacks = Mapping[str, jm.AdapterStack]


def unlabeled_batches(
    suite: Suite, *, part: str = "validation", size: int, seed: int
) -> Iterator[dict[str, Any]]:
    """For ever a batch of every task, each task's inputs shuffled anew in every epoch.

    The shapes never change: inputs with a length are cropped, for each task, to its
    90th percentile rounded up to a multiple of 16, and longer ones are left out.
    """
    sources = {
        task.name: shuffled(
            of_one_length(suite, task.load(part)).inputs, size, (seed, index)
        )
        for index, task in enumerate(suite.tasks)
    }
    while True:
        yield {name: next(source) for name, source in sources.items()}


def first_inputs(suite: Suite, *, rows: int, size: int) -> list[list[Any]]:
    """For each task batches of its first validation inputs."""
    found = []
    for task in suite.tasks:
        whole = tuple(task.load("validation"))
        some = Split(*jax.tree.map(lambda x: x[:rows], whole))
        found.append([inputs for inputs, _ in batches(suite, some, min(rows, size))])
    return found


def own_statistics(
    suite: Suite, stacks: Stacks, *, rows: int, size: int
) -> dict[str, Statistics]:
    """Of the inputs of every task in the model with the task's own adapter, stacked."""

    def apply(parts: Any, inputs: Any) -> Any:
        params, updates = parts
        return with_updates(suite.apply, updates)(params, inputs)

    gather = jm.collector(apply, modules=stacks, mask=suite.mask)
    found = []
    for index, inputs in enumerate(first_inputs(suite, rows=rows, size=size)):
        own = task_updates(stacks, index)
        found.append(gather((suite.params, own), inputs))
    return jm.stack_moments(found)


def model_sample(suite: Suite, stacks: Stacks, *, rows: int) -> jm.ModelSample:
    """The model and inputs of every task, as IterIS takes them."""
    inputs = first_inputs(suite, rows=rows, size=rows)
    base = layer_weights(suite.params, stacks, apply=suite.apply, batch=inputs[0][0])
    return jm.ModelSample(suite.apply, suite.params, inputs, suite.mask, base)
