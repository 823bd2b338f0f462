"""The losses of classification tasks that share one model and have a head each."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxmerge.learning.objectives import entropy
from jaxmerge.learning.step import Losses, Updates
from jaxmerge.models.adapt import Apply, with_updates

Logits = Callable[[Any, Any], jax.Array]  # (head, features [B, ..]) -> [B, classes]


def entropies(
    apply: Apply,
    logits: Logits,
    heads: Mapping[str, Any],
    *,
    logit_scale: ArrayLike = 1.0,
    epsilon: float = 1e-10,
    merged: bool | None = None,
) -> Losses:
    """Mean entropy of the predictions of each task, for `fit`.

    Tasks whose inputs have the same shapes, batch size aside, go through the model
    together.

    Args:
      apply: pure function ``(params, inputs [B, ...]) -> features`` that runs a Flax
        model; not jitted.
      logits: ``(head, features) -> [B, classes]``.
      heads: task -> its head.
      logit_scale: see `entropy`.
      epsilon: see `entropy`.
      merged: see `jaxmerge.models.with_updates`; by default the faster of the two.

    Returns:
      A function as `fit` takes it.

    >>> losses = entropies(lambda params, x: x, lambda head, x: x @ head, {
    ...     "even": jnp.zeros((2, 2)), "sure": jnp.array([[99.0, 0.0], [0.0, 99.0]])})
    >>> found = losses(None, {}, {"even": jnp.eye(2), "sure": jnp.eye(2)})
    >>> {task: f"{value:.3f}" for task, value in found.items()}
    {'even': '0.693', 'sure': '0.000'}
    """

    def losses(
        params: Any, updates: Updates, batch: Mapping[str, Any]
    ) -> dict[str, jax.Array]:
        adapted = with_updates(apply, updates, merged=merged)
        found = {}
        for tasks in _of_one_shape(batch):
            inputs = jax.tree.map(
                lambda *x: jnp.concatenate(x), *(batch[task] for task in tasks)
            )
            features, start = adapted(params, inputs), 0
            for task in tasks:
                end = start + jax.tree.leaves(batch[task])[0].shape[0]
                own = jax.tree.map(lambda x, s=start, e=end: x[s:e], features)
                scores = logits(heads[task], own)
                found[task] = entropy(scores, logit_scale=logit_scale, epsilon=epsilon)
                start = end
        return found

    return losses


def _of_one_shape(batch: Mapping[str, Any]) -> list[list[str]]:
    groups: dict[Any, list[str]] = {}
    for task, inputs in batch.items():
        leaves, structure = jax.tree.flatten(inputs)
        shapes = tuple((x.shape[1:], str(x.dtype)) for x in leaves)
        groups.setdefault((structure, shapes), []).append(task)
    return list(groups.values())
