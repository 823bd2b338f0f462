"""Every input of a task once through the base model."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxmerge.tasks.bases import Base
from jaxmerge.tasks.texts import cropped

Crop = Callable[[Any], Any]  # texts -> the same without needless columns


def row_groups(base: Base, inputs: Any, size: int) -> Iterator[np.ndarray]:
    """Numbers of ``size`` inputs at a time, fewer at the end.

    Texts come in the order of their lengths: those of about one length go together,
    without the padding that none of them needs.

    Args:
      base: the model that reads them.
      inputs: inputs of one task, arrays [N, ...].
      size: number of inputs in a group.
    """
    count = len(jax.tree.leaves(inputs)[0])
    order = np.arange(count)
    if base.inputs == "texts":
        order = np.argsort(token_counts(inputs), kind="stable")
    return (order[start : start + size] for start in range(0, count, size))


def token_counts(texts: Any) -> np.ndarray:
    """Tokens of every text without padding, [N]."""
    return texts["attention_mask"].sum(axis=1)


def batch_of(base: Base, inputs: Any, rows: np.ndarray, *, crop: Crop = cropped) -> Any:
    """A batch of some inputs, with texts about as wide as the longest of them needs."""
    some = jax.tree.map(lambda x: x[rows], inputs)
    return crop(some) if base.inputs == "texts" else some


def batches_of(
    base: Base, inputs: Any, size: int, *, crop: Crop = cropped
) -> Iterator[Any]:
    """Every input of a task once, with little padding."""
    for rows in row_groups(base, inputs, size):
        yield batch_of(base, inputs, rows, crop=crop)


def outputs_of(
    base: Base,
    inputs: Any,
    size: int,
    run: Callable[[Any], Any],
    *,
    crop: Crop = cropped,
    report: Callable[[int], None] | None = None,
) -> Any:
    """What a function gives for every input of a task, [N, ...], in their order.

    The last batch is filled up with inputs that it has already, so that all batches of
    one width share a program.

    Args:
      base: the model that reads them.
      inputs: inputs of one task, arrays [N, ...].
      size: inputs in a batch.
      run: batch [B, ...] -> outputs [B, ...], an array or a pytree of such.
      crop: makes texts narrower.
      report: called after every batch with the number of its inputs.
    """
    groups = list(row_groups(base, inputs, size))
    found: list[Any] = []
    for rows in groups:
        filled_up = np.resize(rows, len(groups[0]))
        outputs = run(batch_of(base, inputs, filled_up, crop=crop))
        some = partial(_first, len(rows))
        found.append(jax.tree.map(some, outputs))
        if report is not None:
            report(len(rows))
    order = np.argsort(np.concatenate(groups))
    return jax.tree.map(lambda *x: np.concatenate(x)[order], *found)


def _first(count: int, values: Any) -> np.ndarray:
    return np.asarray(values)[:count]
