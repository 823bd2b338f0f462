"""Batches without labels, for merges that are learned."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from experiments.suite import Suite


def unlabeled_batches(
    suite: Suite, *, part: str = "validation", size: int, seed: int
) -> Iterator[dict[str, Any]]:
    """For ever a batch of every task, each task's inputs shuffled anew in every epoch.

    The shapes never change: inputs with a length are cropped, for each task, to its
    90th percentile rounded up to a multiple of 16, and longer ones are left out.
    """
    sources = {
        task.name: _task_batches(suite, task.load(part).inputs, size, (seed, index))
        for index, task in enumerate(suite.tasks)
    }
    while True:
        yield {name: next(source) for name, source in sources.items()}


def _task_batches(
    suite: Suite, inputs: Any, size: int, seed: tuple[int, int]
) -> Iterator[Any]:
    count = len(jax.tree.leaves(inputs)[0])
    usable = np.arange(count)
    if suite.lengths is not None:
        lengths = suite.lengths(inputs)
        limit = -(-int(np.percentile(lengths, 90)) // 16) * 16
        usable = usable[lengths <= limit]
        inputs = suite.crop(inputs, limit)
    rng = np.random.default_rng(seed)
    waiting = np.empty(0, int)
    while True:
        while len(waiting) < size:
            waiting = np.concatenate([waiting, rng.permutation(usable)])
        chosen, waiting = waiting[:size], waiting[size:]
        yield jax.tree.map(lambda x, chosen=chosen: x[chosen], inputs)
