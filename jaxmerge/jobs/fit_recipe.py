"""From a base, adapters, heads and inputs to learned coefficients."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxmerge.io import Adapters
from jaxmerge.jobs.learn_recipe import LearnRecipe
from jaxmerge.learning import (
    entropies,
    fit,
    null_space_ratios,
    single_adapter_losses,
)
from jaxmerge.learning.fit import History
from jaxmerge.learning.fit import Progress as FitProgress
from jaxmerge.learning.step import Losses
from jaxmerge.learning.work import Work
from jaxmerge.tasks.bases import Base, token_mask
from jaxmerge.tasks.unlabeled import Unlabeled
from jaxmerge.types import Update

ANCHOR_BATCHES = 8


class Outcome(NamedTuple):
    """A finished fit.

    Attributes:
      updates: module -> merged update.
      phis: module -> coefficients.
      history: objective [steps] and losses [steps, T].
      anchors: loss of each task in the model with its own adapter alone, [T].
    """

    updates: dict[str, Update]
    phis: dict[str, np.ndarray]
    history: History
    anchors: list[float]


def fit_recipe(
    recipe: LearnRecipe,
    base: Base,
    adapters: Adapters,
    heads: Mapping[str, Any],
    unlabeled: Unlabeled,
    *,
    work: Work,
    report: Callable[[FitProgress], None] | None = None,
) -> Outcome:
    """Fits the coefficients of a recipe.

    The anchors are mean losses over the first 8 batches. A fit that was stopped goes
    on from its last checkpoint in ``work`` and ends with the same bits.

    Args:
      recipe: how.
      base: the model.
      adapters: T adapters of it.
      heads: task -> head, see `jaxmerge.tasks.task_heads`; not used where the loss
        needs none.
      unlabeled: inputs of every task.
      work: keeps the checkpoints.
      report: see `jaxmerge.fit`.

    Raises:
      FloatingPointError: a loss or its gradient is not finite; names task and step.
    """
    losses = _losses(recipe, base, adapters, heads, unlabeled)
    stream = {"size": recipe.batch, "seed": recipe.seed}
    anchors = work.anchors
    if anchors is None:
        some = itertools.islice(unlabeled.batches(**stream), ANCHOR_BATCHES)
        found = single_adapter_losses(
            adapters.names, adapters.stacks, losses, some, params=base.params
        )
        anchors = np.asarray(found).tolist()
    work.start(anchors)
    preference = recipe.preference
    fitted = fit(
        recipe.learned,
        adapters.names,
        adapters.stacks,
        losses,
        unlabeled.batches(**stream),
        recipe.optimizer,
        steps=recipe.steps,
        params=base.params,
        scalarise=recipe.scalarise(jnp.asarray(anchors, jnp.float32)),
        preference=None if preference is None else jnp.asarray(preference, jnp.float32),
        shared=recipe.shared,
        accumulate=recipe.accumulate,
        checkpoint=work.checkpoints,
        report=report,
    )
    phis = {name: np.asarray(phi) for name, phi in fitted.phis.items()}
    return Outcome(fitted.updates, phis, fitted.history, anchors)


def _losses(
    recipe: LearnRecipe,
    base: Base,
    adapters: Adapters,
    heads: Mapping[str, Any],
    unlabeled: Unlabeled,
) -> Losses:
    if recipe.loss == "entropy":
        return entropies(base.apply, base.logits, heads, logit_scale=recipe.logit_scale)
    some = next(iter(unlabeled.inputs.values()))
    mask = token_mask(base, some, list(adapters.stacks))
    return null_space_ratios(base.apply, adapters.names, adapters.stacks, mask=mask)
