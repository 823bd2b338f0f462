"""What a merged model says of the batches of some tasks."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxmerge.learning.step import Updates
from jaxmerge.models.adapt import Apply, with_updates

Logits = Callable[[Any, Any], jax.Array]  # (head, features [B, ..]) -> [B, .., classes]


def task_features(
    apply: Apply,
    params: Any,
    updates: Updates,
    batch: Mapping[str, Any],
    *,
    merged: bool | None = None,
) -> Iterator[tuple[str, Any]]:
    """Every task with the features of its batch in the merged model.

    Tasks whose inputs have the same shapes, batch size aside, go through the model
    together.

    Args:
      apply: pure function ``(params, inputs [B, ...]) -> features`` that runs a Flax
        model; not jitted.
      params: its parameters.
      updates: module -> merged update.
      batch: task -> inputs.
      merged: see `jaxmerge.models.with_updates`; by default the faster of the two.
    """
    adapted = with_updates(apply, updates, merged=merged)
    for tasks in _of_one_shape(batch):
        inputs = jax.tree.map(
            lambda *x: jnp.concatenate(x), *(batch[task] for task in tasks)
        )
        features, start = adapted(params, inputs), 0
        for task in tasks:
            end = start + jax.tree.leaves(batch[task])[0].shape[0]
            yield task, jax.tree.map(lambda x, s=start, e=end: x[s:e], features)
            start = end


def _of_one_shape(batch: Mapping[str, Any]) -> list[list[str]]:
    groups: dict[Any, list[str]] = {}
    for task, inputs in batch.items():
        leaves, structure = jax.tree.flatten(inputs)
        shapes = tuple((x.shape[1:], str(x.dtype)) for x in leaves)
        groups.setdefault((structure, shapes), []).append(task)
    return list(groups.values())
