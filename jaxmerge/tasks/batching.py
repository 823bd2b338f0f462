"""Every input of a task once through the base model."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxmerge.tasks.bases import Base
from jaxmerge.tasks.texts import cropped


def row_groups(base: Base, inputs: Any, size: int) -> Iterator[np.ndarray]:
    """Numbers of ``size`` inputs at a time, fewer at the end.

    Texts come in the order of their lengths: those of about one length go together,
    without the padding that none of them needs.

    Args:
      base: the model that reads them.
      inputs: of one task, arrays [N, ...].
      size: of a group.
    """
    count = len(jax.tree.leaves(inputs)[0])
    order = np.arange(count)
    if base.inputs == "texts":
        order = np.argsort(inputs["attention_mask"].sum(axis=1), kind="stable")
    return (order[start : start + size] for start in range(0, count, size))


def batch_of(base: Base, inputs: Any, rows: np.ndarray) -> Any:
    """Some inputs, texts as wide as the longest of them needs."""
    some = jax.tree.map(lambda x: x[rows], inputs)
    return cropped(some) if base.inputs == "texts" else some


def batches_of(base: Base, inputs: Any, size: int) -> Iterator[Any]:
    """Every input of a task once, with little padding."""
    for rows in row_groups(base, inputs, size):
        yield batch_of(base, inputs, rows)
