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

SHARED = "JAXMERGE_SHARED"


class Split(NamedTuple):
    """Examples: a pytree of arrays [N, ...], and labels [N]."""

    inputs: Any
    labels: np.ndarray


class Task(NamedTuple):
    """One task: its adapter, its head, and how to read a part of its data."""

    name: str
    adapter: Path
    head: Any
    load: Callable[[str], Split]  # "train", "validation" or "test"


class Suite(NamedTuple):
    """A base model and tasks with one adapter each.

    ``apply`` runs the shared model, ``logits`` the head of one task on its features.
    """

    name: str
    params: Any
    apply: Callable[[Any, Any], Any]  # (params, inputs [B, ...]) -> features [B, ...]
    logits: Callable[[Any, Any], jax.Array]  # (head, features) -> [B, classes]
    tasks: tuple[Task, ...]
    lengths: Callable[[Any], np.ndarray] | None = None  # tokens of each input [N]
    crop: Callable[[Any, int], Any] | None = None  # keeps the first tokens of inputs
    mask: Callable[[Any], jax.Array] | None = None  # tokens that are not padding [B, S]


def batches(suite: Suite, split: Split, size: int) -> Iterator[tuple[Any, np.ndarray]]:
    """Batches of at most ``size`` examples, with the indices [B] of the examples.

    Inputs with a length are sorted by it and cropped to a multiple of 16 tokens, so
    that little is computed on padding.
    """
    order, lengths = np.arange(len(split.labels)), None
    if suite.lengths is not None:
        lengths = suite.lengths(split.inputs)
        order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        inputs = jax.tree.map(lambda x, chosen=chosen: x[chosen], split.inputs)
        if lengths is not None:
            inputs = suite.crop(inputs, -(-int(lengths[chosen].max()) // 16) * 16)
        yield inputs, chosen


def of_one_length(suite: Suite, split: Split) -> Split:
    """The examples for training, which needs one shape and little padding.

    Inputs with a length are cropped to the 90th percentile of their lengths, rounded up
    to a multiple of 16 tokens, and longer ones are left out.
    """
    if suite.lengths is None:
        return split
    lengths = suite.lengths(split.inputs)
    limit = -(-int(np.percentile(lengths, 90)) // 16) * 16
    cropped = split._replace(inputs=suite.crop(split.inputs, limit))
    return jax.tree.map(lambda x: x[lengths <= limit], cropped)


def shared_folder() -> Path:
    """Where the experiments' real data lie: ``$JAXMERGE_SHARED`` or ``../shared``.

    Raises:
      ValueError: there is no such folder.
    """
    folder = Path(os.environ.get(SHARED, Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; set {SHARED} to that of the data")
    return folder
