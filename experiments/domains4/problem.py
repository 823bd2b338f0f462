"""What merges and adapters of all domains learn from: losses, and batches of texts."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax

from jaxmerge.io import Adapters
from jaxmerge.jobs.fit_recipe import model_losses
from jaxmerge.learning.predictions import task_features
from jaxmerge.learning.step import Losses
from jaxmerge.learning.teachers import taught
from jaxmerge.learning.token_objectives import token_nats
from jaxmerge.tasks import Base, Unlabeled
from jaxmerge.tasks.next_tokens import NEXT, NONE

READ = 8  # texts in one batch of an adapter that answers


class Problem(NamedTuple):
    """As `jaxmerge.fit` takes it.

    Attributes:
      losses: of every domain.
      batches: for ever a batch of every domain.
    """

    losses: Losses
    batches: Iterator[Mapping[str, Any]]


def learning_problem(
    loss: str,
    base: Base,
    adapters: Adapters,
    texts: Unlabeled,
    *,
    batch: int,
    seed: int,
) -> Problem:
    """What all domains learn from, together.

    Args:
      loss: "distillation", every own adapter teaching its domain, or "labels", the
        completions themselves.
      base: a causal language model.
      adapters: of the domains.
      texts: of the domains.
      batch: texts of each domain in a step.
      seed: from which batches are drawn.
    """
    if loss == "labels":
        return Problem(completion_losses(base), texts.batches(size=batch, seed=seed))
    answered = taught(base, adapters, {}, texts, batch=READ)
    losses = model_losses(loss, base, adapters, {}, texts)
    return Problem(losses, answered.batches(size=batch, seed=seed))


def completion_losses(base: Base) -> Losses:
    """Nats a token of the completions of each domain, as `jaxmerge.fit` takes losses.

    Raises:
      ValueError: the base was not read as a causal language model.
    """
    vocabulary = base.vocabulary
    if vocabulary is None:
        raise ValueError(f"{base.folder}: was not read as a causal language model")

    def losses(
        params: Any, updates: Any, batch: Mapping[str, Any]
    ) -> dict[str, jax.Array]:
        found = {}
        for task, hidden in task_features(base.apply, params, updates, batch):
            ids = batch[task][NEXT]
            nats, _ = token_nats(hidden, ids, vocabulary(params))
            found[task] = nats.sum() / (ids != NONE).sum()
        return found

    return losses
