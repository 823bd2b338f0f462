"""How sure the merged model is of the inputs of each task: losses without labels."""

from collections.abc import Mapping
from typing import Any

import jax
from jax.typing import ArrayLike

from jaxmerge.learning.distillation import InputMask, Vocabulary
from jaxmerge.learning.objectives import entropy, mean_prediction_entropy
from jaxmerge.learning.predictions import Logits, task_features
from jaxmerge.learning.step import Losses, Updates
from jaxmerge.learning.token_logits import CHUNK, head_and_body
from jaxmerge.learning.token_objectives import token_entropy
from jaxmerge.models.adapt import Apply


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

    >>> import jax.numpy as jnp
    >>> losses = entropies(lambda params, x: x, lambda head, x: x @ head, {
    ...     "even": jnp.zeros((2, 2)), "sure": jnp.array([[99.0, 0.0], [0.0, 99.0]])})
    >>> found = losses(None, {}, {"even": jnp.eye(2), "sure": jnp.eye(2)})
    >>> {task: f"{value:.3f}" for task, value in found.items()}
    {'even': '0.693', 'sure': '0.000'}
    """

    def losses(
        params: Any, updates: Updates, batch: Mapping[str, Any]
    ) -> dict[str, jax.Array]:
        options = {"logit_scale": logit_scale, "epsilon": epsilon}
        return {
            task: entropy(logits(heads[task], features), **options)
            for task, features in task_features(
                apply, params, updates, batch, merged=merged
            )
        }

    return losses


def information(
    apply: Apply,
    logits: Logits,
    heads: Mapping[str, Any],
    *,
    logit_scale: ArrayLike = 1.0,
    merged: bool | None = None,
) -> Losses:
    """Information maximisation: entropy of each prediction less that of their mean.

    ``mean H(p) - H(mean p)`` over the batch: sure of every input, but not of one class
    for all of them. Never positive; as low as ``-log(classes)``.

    Args:
      apply: see `entropies`, and so ``logits``, ``heads`` and ``merged``.
      logit_scale: see `entropy`.

    >>> import jax.numpy as jnp
    >>> losses = information(lambda params, x: x, lambda head, x: x @ head, {
    ...     "one class": jnp.array([[99.0, 0.0], [99.0, 0.0]]), "two": 99 * jnp.eye(2)})
    >>> found = losses(None, {}, {"one class": jnp.eye(2), "two": jnp.eye(2)})
    >>> {task: f"{value + 0:.3f}" for task, value in found.items()}
    {'one class': '0.000', 'two': '-0.693'}
    """

    def losses(
        params: Any, updates: Updates, batch: Mapping[str, Any]
    ) -> dict[str, jax.Array]:
        found = {}
        for task, features in task_features(
            apply, params, updates, batch, merged=merged
        ):
            scores = logits(heads[task], features)
            sure = entropy(scores, logit_scale=logit_scale)
            found[task] = sure - mean_prediction_entropy(
                scores, logit_scale=logit_scale
            )
        return found

    return losses


def token_entropies(
    apply: Apply,
    vocabulary: Vocabulary,
    *,
    head: str | None = None,
    mask: InputMask | None = None,
    merged: bool | None = None,
    chunk: int = CHUNK,
) -> Losses:
    """`entropies` of the next tokens of a causal language model.

    Args:
      apply: see `jaxmerge.token_distillation`, and so ``vocabulary``, ``head``,
        ``mask``, ``merged`` and ``chunk``.

    >>> import jax.numpy as jnp
    >>> losses = token_entropies(lambda params, x: x, lambda params: params)
    >>> found = losses(jnp.eye(2), {}, {"even": jnp.zeros((1, 3, 2))})
    >>> {task: f"{value:.3f}" for task, value in found.items()}
    {'even': '0.693'}
    """

    def losses(
        params: Any, updates: Updates, batch: Mapping[str, Any]
    ) -> dict[str, jax.Array]:
        of_merge, body = head_and_body(vocabulary(params), updates, head)
        return {
            task: token_entropy(
                *(hidden, of_merge),
                mask=None if mask is None else mask(batch[task]),
                chunk=chunk,
            )
            for task, hidden in task_features(apply, params, body, batch, merged=merged)
        }

    return losses
