"""Batches without labels, for merges that are learned."""

from collections.abc import Iterator
from typing import Any

from experiments.suite import Suite, of_one_length
from jaxmerge.learning.unlabeled import shuffled


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
