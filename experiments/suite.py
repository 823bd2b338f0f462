"""What an experiment on merging needs: one base model, several tasks, their examples.

Every experiment builds a `Suite`; the runner, the learned merges and the analyses know
nothing else about models and data.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmerge.tasks import Base
from jaxmerge.tasks.batching import batches_of, token_counts

SHARED = "JAXMERGE_SHARED"
SHOWN, HELD_BACK = "shown", "held back"  # the parts of validation


class Split(NamedTuple):
    """Examples: a pytree of arrays [N, ...], and labels [N]."""

    inputs: Any
    labels: np.ndarray

    def first(self, rows: int | None) -> "Split":
        """At most so many of them."""
        return Split(*jax.tree.map(lambda x: x[:rows], tuple(self)))

    def where(self, chosen: np.ndarray) -> "Split":
        """Those of a mask [N]."""
        return Split(*jax.tree.map(lambda x: x[chosen], tuple(self)))


class Task(NamedTuple):
    """One task: its adapter, its head, and how to read a part of its data."""

    name: str
    adapter: Path
    head: Any  # as `Base.logits` takes it
    load: Callable[[str], Split]  # "train", "validation" or "test"

    def read(self, part: str) -> Split:
        """A part of the data, or one of the two parts of validation.

        Every fourth example of validation is `HELD_BACK`, to choose options of fits on
        that the others were `SHOWN` to.
        """
        if part not in (SHOWN, HELD_BACK):
            return self.load(part)
        whole = self.load("validation")
        held_back = np.arange(len(whole.labels)) % 4 == 3
        return whole.where(held_back == (part == HELD_BACK))


class Suite(NamedTuple):
    """A base model and tasks with one adapter each."""

    name: str
    base: Base
    tasks: tuple[Task, ...]

    def with_adapters_in(self, folder: Path) -> "Suite":
        """The same tasks with other adapters."""
        tasks = (task._replace(adapter=folder / task.name) for task in self.tasks)
        return self._replace(tasks=tuple(tasks))


def batches(suite: Suite, inputs: Any, size: int) -> Iterator[Any]:
    """Every input once, as the library's `batches_of`, cropped by `narrow`."""
    return batches_of(suite.base, inputs, size, crop=narrow)


def narrow(texts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Texts as wide as the longest of them, rounded up to a multiple of 16 tokens.

    The library doubles widths instead, for fewer programs; the committed results were
    measured at these.
    """
    return _first_tokens(texts, _multiple_of_16(token_counts(texts).max()))


def of_one_length(suite: Suite, split: Split, *, tokens: int | None = None) -> Split:
    """The examples for training, which needs one shape and little padding.

    Texts are cropped to the 90th percentile of their lengths, rounded up to a multiple
    of 16 tokens, and to ``tokens`` if that is less; longer ones are left out.
    """
    if suite.base.inputs != "texts":
        return split
    lengths = token_counts(split.inputs)
    limit = _multiple_of_16(np.percentile(lengths, 90))
    limit = limit if tokens is None else min(limit, tokens)
    cropped = split._replace(inputs=_first_tokens(split.inputs, limit))
    return jax.tree.map(lambda x: x[lengths <= limit], cropped)


def _multiple_of_16(tokens: float) -> int:
    return -(-int(tokens) // 16) * 16


def _first_tokens(texts: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    return {name: tokens[:, :count] for name, tokens in texts.items()}


def shared_folder() -> Path:
    """Where the experiments' real data lie: ``$JAXMERGE_SHARED`` or ``../shared``.

    Raises:
      ValueError: there is no such folder.
    """
    folder = Path(os.environ.get(SHARED, Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; set {SHARED} to that of the data")
    return folder
