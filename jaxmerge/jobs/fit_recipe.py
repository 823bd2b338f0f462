"""From a base, adapters, heads and inputs to learned coefficients."""

import itertools
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxmerge.io import Adapters
from jaxmerge.jobs.learn_recipe import TAUGHT, LearnRecipe
from jaxmerge.jobs.progress import Progress, silent
from jaxmerge.learning import entropies, fit, null_space_ratios, single_adapter_losses
from jaxmerge.learning.apply import merge, prepared
from jaxmerge.learning.distillation import (
    distillation,
    feature_distillation,
    token_distillation,
)
from jaxmerge.learning.entropies import information, token_entropies
from jaxmerge.learning.fit import History
from jaxmerge.learning.fit import Progress as FitProgress
from jaxmerge.learning.objectives import mean_prediction_entropy
from jaxmerge.learning.start import REFINEMENTS, SCALES, equal_phis, search_start
from jaxmerge.learning.step import Losses, first_phis
from jaxmerge.learning.teachers import taught
from jaxmerge.learning.work import Work
from jaxmerge.models.decoder import LM_HEAD
from jaxmerge.spread import mesh_of_jobs
from jaxmerge.stats.moments import Statistics
from jaxmerge.tasks.base_layers import token_mask
from jaxmerge.tasks.bases import Base
from jaxmerge.tasks.next_tokens import counted_tokens
from jaxmerge.tasks.predict import Predict, predictor
from jaxmerge.tasks.unlabeled import Unlabeled
from jaxmerge.types import Update

FIRST_BATCHES = 8  # at most, from which anchors and the start are found
_ENOUGH = 64  # inputs of each task, for a start
_ENOUGH_TOKENS = 1024
_FALLEN = 0.9  # of the entropy of the mean prediction, below which a note warns


class Said(NamedTuple):
    """What the predictions of a merged model for one task tell without labels.

    Attributes:
      mean_entropy: entropy of their mean, in nats.
      largest_share: share of the inputs for which the most frequent class is named.
    """

    mean_entropy: float
    largest_share: float


class Outcome(NamedTuple):
    """A finished fit.

    Attributes:
      updates: module -> merged update.
      phis: module -> coefficients.
      history: objective [steps] and losses [steps, T].
      anchors: ideal loss of each task: that of its own adapter alone, [T].
      start: the scale at which a search said to begin; None without a search.
      before: task -> what predictions tell at the start; empty without heads.
      after: task -> the same at the end.
    """

    updates: dict[str, Update]
    phis: dict[str, np.ndarray]
    history: History
    anchors: list[float]
    start: float | None
    before: Mapping[str, Said]
    after: Mapping[str, Said]


def fit_recipe(
    recipe: LearnRecipe,
    base: Base,
    adapters: Adapters,
    heads: Mapping[str, Any],
    unlabeled: Unlabeled,
    *,
    work: Work,
    stats: Mapping[str, Statistics] | None = None,
    progress: Progress = silent,
) -> Outcome:
    """Fits the coefficients of a recipe.

    Where each adapter is a teacher, its answers are computed once for every input, and
    the anchors are 0; otherwise the anchors are mean losses over the first 8 batches.
    The start is found from as many of these as hold 64 inputs of each task, or 1,024
    tokens that count. A fit that was stopped goes on from its last checkpoint in
    ``work`` and ends with the same bits.

    Args:
      recipe: how the coefficients are learned.
      base: the model.
      adapters: T adapters of it.
      heads: task -> head, see `jaxmerge.tasks.task_heads`; not used where the loss
        needs none.
      unlabeled: inputs of every task.
      work: keeps the checkpoints.
      stats: module -> statistics of the inputs of all tasks, where the recipe needs
        them.
      progress: shows how far it is.

    Raises:
      FloatingPointError: a loss or its gradient is not finite; names task and step.
    """
    losses = model_losses(
        *(recipe.loss, base, adapters, heads, unlabeled),
        temperature=recipe.temperature,
        logit_scale=recipe.logit_scale,
    )
    predict = predictor(base, heads, unlabeled)
    enough = enough_batches(base, unlabeled, recipe.batch)
    if recipe.loss in TAUGHT:
        unlabeled = _taught(recipe, base, heads, adapters, unlabeled, progress)

    def batches(count: int | None = None) -> Iterator[Mapping[str, Any]]:
        source = unlabeled.batches(size=recipe.batch, seed=recipe.seed)
        return itertools.islice(source, count)

    tasks, stacks, params = adapters.names, adapters.stacks, {"params": base.params}
    anchors = work.anchors
    if anchors is None and recipe.loss in TAUGHT:
        anchors = [0.0] * len(tasks)  # the loss of the teacher itself
    elif anchors is None:
        with progress("measuring each adapter alone", 1) as advance:
            some = batches(FIRST_BATCHES)
            found = single_adapter_losses(tasks, stacks, losses, some, **params)
            advance(1)
        anchors = np.asarray(found).tolist()
    work.start(anchors, work.scale)
    problem = {
        **params,
        "scalarise": recipe.scalarise(jnp.asarray(anchors, jnp.float32)),
        "preference": recipe.rho,
        "shared": recipe.shared,
        "stats": stats,
    }
    learned, scale = recipe.learned, work.scale
    bases = prepared(learned, stacks, stats)
    start = first_phis(learned, bases, shared=recipe.shared)
    if recipe.start == "auto":
        if scale is None:
            some = batches(enough)
            with searching(progress) as report:
                found = search_start(
                    *(learned, tasks, stacks, losses, some), report=report, **problem
                )
            scale = found.scale
            work.start(anchors, scale)
        start = equal_phis(start, scale)
    with progress("learning", recipe.steps) as advance:
        fitted = fit(
            *(learned, tasks, stacks, losses, batches(), recipe.optimizer),
            steps=recipe.steps,
            start=start,
            accumulate=recipe.accumulate,
            mesh=mesh_of_jobs("data"),
            checkpoint=work.checkpoints,
            report=fit_reporter(recipe, tasks, advance),
            **problem,
        )
    return Outcome(
        updates=fitted.updates,
        phis={name: np.asarray(phi) for name, phi in fitted.phis.items()},
        history=fitted.history,
        anchors=anchors,
        start=scale,
        before=_said(recipe, predict, adapters, heads, merge(learned, start, bases)),
        after=_said(recipe, predict, adapters, heads, fitted.updates),
    )


@contextmanager
def searching(progress: Progress) -> Generator[Callable[[float, float], None]]:
    """A ``report`` for `jaxmerge.search_start` that shows what was tried."""
    usual = len(SCALES[::2]) + 3 + REFINEMENTS
    with progress("looking for the scale to begin with", usual) as advance:

        def report(scale: float, objective: float) -> None:
            advance(1, title=f"begin at {scale:.3g}? objective {objective:.4f}")

        yield report


def fit_reporter(
    recipe: LearnRecipe, tasks: Sequence[str], advance: Callable[..., None]
) -> Callable[[FitProgress], None]:
    """A ``report`` for `jaxmerge.fit` that shows the last step that was done."""
    done = 0

    def report(progress: FitProgress) -> None:
        nonlocal done
        objective, losses = (values[-1] for values in progress.history)
        pairs = zip(tasks, losses, strict=True)
        each = ", ".join(f"{task} {value:.3f}" for task, value in pairs)
        title = f"objective {objective:.4f}, {recipe.loss} {each}"
        advance(progress.step - done, title=title)
        done = progress.step

    return report


def warnings(
    recipe: LearnRecipe, outcome: Outcome, tasks: tuple[str, ...]
) -> Iterator[str]:
    """What tells of a collapse, without labels."""
    pairs = zip(tasks, outcome.history.losses[0], outcome.anchors, strict=True)
    below = [task for task, loss, anchor in pairs if loss < anchor]
    if recipe.loss == "entropy" and below:
        yield (
            f"the entropy of {', '.join(below)} was below that of the own adapter at "
            "the start, so a lower one is no guide; learn by distillation"
        )
    for task, now in outcome.after.items():
        then = outcome.before[task]
        if now.mean_entropy < _FALLEN * then.mean_entropy:
            yield (
                f"more of the inputs of {task} are now predicted to be of one class "
                f"(entropy of the mean prediction {then.mean_entropy:.2f} to "
                f"{now.mean_entropy:.2f}), which is how merges collapse; compare the "
                "merge with the own adapter"
            )


def model_losses(
    loss: str,
    base: Base,
    adapters: Adapters,
    heads: Mapping[str, Any],
    unlabeled: Unlabeled,
    *,
    temperature: float = 1.0,
    logit_scale: float = 1.0,
) -> Losses:
    """The losses of all tasks through a base, by their name in `LOSSES`."""
    model, scale = (base.apply, base.logits, heads), logit_scale
    vocabulary = base.vocabulary
    of_tokens = None if vocabulary is None else counted_tokens
    match loss:
        case "distillation" if vocabulary is not None:
            how = {"mask": of_tokens, "temperature": temperature}
            return token_distillation(base.apply, vocabulary, head=LM_HEAD, **how)
        case "distillation":
            return distillation(*model, logit_scale=scale, temperature=temperature)
        case "features":
            return feature_distillation(base.apply, mask=of_tokens)
        case "entropy" if vocabulary is not None:
            return token_entropies(base.apply, vocabulary, head=LM_HEAD, mask=of_tokens)
        case "entropy":
            return entropies(*model, logit_scale=scale)
        case "information":
            return information(*model, logit_scale=scale)
        case _:
            some = next(iter(unlabeled.inputs.values()))
            mask = token_mask(base, some, list(adapters.stacks))
            inputs = (base.apply, adapters.names, adapters.stacks)
            return null_space_ratios(*inputs, mask=mask)


def enough_batches(base: Base, unlabeled: Unlabeled, size: int) -> int:
    """How many batches tell at which scale to begin."""
    enough = _ENOUGH
    if base.causal:
        tokens = [counted_tokens(x).mean(0).sum() for x in unlabeled.inputs.values()]
        enough = min(enough, _ENOUGH_TOKENS / min(tokens))
    return min(FIRST_BATCHES, math.ceil(enough / size))


def _taught(
    recipe: LearnRecipe,
    base: Base,
    heads: Mapping[str, Any],
    adapters: Adapters,
    unlabeled: Unlabeled,
    progress: Progress,
) -> Unlabeled:
    """Every input with what the own adapter of its task says of it."""
    total = sum(map(unlabeled.count, adapters.names))
    with progress("asking each adapter", total) as advance:

        def report(task: str, count: int) -> None:
            advance(count, title=f"asking the adapter of {task}")

        how = {"top": recipe.teacher_top, "temperature": recipe.temperature}
        return taught(base, adapters, heads, unlabeled, report=report, **how)


def _said(
    recipe: LearnRecipe,
    predict: Predict,
    adapters: Adapters,
    heads: Mapping[str, Any],
    updates: Mapping[str, Update],
) -> dict[str, Said]:
    """What the predictions of a merge for all inputs tell; nothing without heads."""
    found = {}
    for task in adapters.names if heads else ():
        logits = predict(task, updates)
        entropy = mean_prediction_entropy(
            jnp.asarray(logits), logit_scale=recipe.logit_scale
        )
        named = np.bincount(logits.argmax(axis=-1).reshape(-1))
        found[task] = Said(float(entropy), float(named.max() / named.sum()))
    return found
