"""Fits of learned merges on the inputs of a suite, without their labels."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

import jaxmerge as jm
from experiments.lora import Factors
from experiments.one_lora import train_one_lora
from experiments.settings import Settings
from experiments.suite import Split, Suite
from experiments.unlabeled import learning_examples, shuffled_batches
from jaxmerge.io import Adapters, load_peft
from jaxmerge.jobs.learn_recipe import LearnRecipe
from jaxmerge.learning.apply import prepared
from jaxmerge.learning.predictions import task_features
from jaxmerge.learning.teachers import taught
from jaxmerge.tasks import Unlabeled

FIRST_SEED = 0


def label_losses(
    apply: Any, logits: Any, heads: Mapping[str, Any], *, logit_scale: float
) -> Any:
    """Cross-entropy of every task; the batches are `jm.Taught` with classes."""

    def losses(params: Any, updates: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        inputs = {task: given.inputs for task, given in batch.items()}
        found = {}
        for task, features in task_features(apply, params, updates, inputs):
            scores = logit_scale * logits(heads[task], features)
            each = optax.softmax_cross_entropy_with_integer_labels(
                scores.astype(jnp.float32), batch[task].answers
            )
            found[task] = each.mean()
        return found

    return losses


class Learning:
    """The tasks of a suite as merges are learned from them.

    Args:
      suite: base and tasks.
      settings: sizes of batches and texts.
      adapters: of the tasks.
      part: whose inputs are shown.
      rows: inputs of each task that are shown; None for all.
    """

    def __init__(
        self,
        suite: Suite,
        settings: Settings,
        adapters: Adapters,
        *,
        part: str = "validation",
        rows: int | None = None,
    ):
        self.suite, self.settings, self.adapters = suite, settings, adapters
        self.part, self.rows = part, rows
        self.tasks = tuple(task.name for task in suite.tasks)
        self.anchors = cache(self._anchors)
        heads = {task.name: task.head for task in suite.tasks}
        model = (suite.base.apply, suite.base.logits, heads)
        self.losses = {
            "entropy": jm.entropies(*model, logit_scale=settings.logit_scale),
            "information": jm.information(*model, logit_scale=settings.logit_scale),
            "distillation": jm.distillation(*model, logit_scale=settings.logit_scale),
            "labels": label_losses(*model, logit_scale=settings.logit_scale),
        }

    @cached_property
    def examples(self) -> dict[str, Split]:
        """task -> what is shown, with labels that only a reference looks at."""
        given = {"rows": self.rows, "tokens": self.settings.learning_tokens}
        return learning_examples(self.suite, part=self.part, **given)

    @property
    def inputs(self) -> dict[str, Any]:
        """task -> inputs without labels."""
        return {task: split.inputs for task, split in self.examples.items()}

    @cached_property
    def taught(self) -> dict[str, jm.Taught]:
        """task -> inputs and what the own adapter says of them."""
        heads = {task.name: task.head for task in self.suite.tasks}
        shown = Unlabeled(self.inputs, files=(), rows={}, notes=())
        asked = (self.suite.base, self.adapters, heads, shown)
        return taught(*asked, batch=self.settings.batch).inputs

    @property
    def labeled(self) -> dict[str, jm.Taught]:
        """task -> the same inputs with the right classes in the place of answers."""
        return {task: jm.Taught(*split) for task, split in self.examples.items()}

    def _anchors(self, loss: str) -> np.ndarray:
        """The loss of each task under its own adapter alone, [T]."""
        stacks, params = self.adapters.stacks, self.suite.base.params
        some = self._batches(loss, FIRST_SEED, self.settings.learning_batch)
        some = itertools.islice(some, self.settings.anchor_batches)
        found = jm.single_adapter_losses(
            self.tasks, stacks, self.losses[loss], some, params=params
        )
        return np.asarray(found, np.float32)

    def stacks_of(self, tasks: Sequence[str]) -> Mapping[str, jm.AdapterStack]:
        """The adapters of some of the tasks."""
        if tuple(tasks) == self.tasks:
            return self.adapters.stacks
        folders = {task.name: task.adapter for task in self.suite.tasks}
        return load_peft([folders[task] for task in tasks], heads="keep").stacks

    def search(self, recipe: LearnRecipe, stats: Any = None) -> float:
        """The scale of all coefficients that serves the objective best."""
        some = self._batches(recipe.loss, FIRST_SEED, self.settings.learning_batch)
        found = jm.search_start(
            *(recipe.learned, self.tasks, self.adapters.stacks),
            self.losses[recipe.loss],
            list(itertools.islice(some, self.settings.start_batches)),
            params=self.suite.base.params,
            scalarise=self._scalarise(recipe, self.tasks),
            stats=stats,
        )
        return found.scale

    def fit(
        self,
        recipe: LearnRecipe,
        scale: float,
        *,
        tasks: Sequence[str] | None = None,
        batch: int | None = None,
        stats: Any = None,
        **options: Any,
    ) -> jm.Fitted:
        """Learns the coefficients of a merge, all of which begin at one scale.

        Args:
          recipe: the method, its loss and rate, and the steps.
          scale: at the start.
          tasks: that are merged; all unless given.
          batch: inputs of each task in a step; those of the settings unless given.
          stats: module -> statistics of inputs, where the method needs them.
          **options: of `jaxmerge.fit`.
        """
        tasks = self.tasks if tasks is None else tuple(tasks)
        stacks, learned = self.stacks_of(tasks), recipe.learned
        if recipe.loss == "distillation":
            recipe = replace(recipe, schedule=self.settings.schedule)
        start = {
            name: jnp.full_like(learned.init(basis), scale)
            for name, basis in prepared(learned, stacks, stats).items()
        }
        source = self._batches(
            recipe.loss, recipe.seed, batch or self.settings.learning_batch, tasks
        )
        return jm.fit(
            *(learned, tasks, stacks, self.losses[recipe.loss], source),
            recipe.optimizer,
            steps=recipe.steps,
            params=self.suite.base.params,
            scalarise=self._scalarise(recipe, tasks),
            start=start,
            stats=stats,
            **options,
        )

    def train(self, loss: str, *, seed: int, **options: Any) -> Factors:
        """Trains one adapter for all tasks on the batches that a fit sees.

        Args:
          loss: "distillation" or "labels".
          seed: of the batches and of the first A.
          **options: of `train_one_lora`.
        """
        return train_one_lora(
            self.losses[loss],
            self._batches(loss, seed, self.settings.learning_batch),
            self.settings.reference,
            params=self.suite.base.params,
            seed=seed,
            **options,
        )

    def _scalarise(self, recipe: LearnRecipe, tasks: Sequence[str]) -> Any:
        if recipe.loss == "distillation":
            return recipe.scalarise(np.zeros(len(tasks), np.float32))
        anchors = self.anchors(recipe.loss)
        return recipe.scalarise(anchors[[self.tasks.index(t) for t in tasks]])

    def _batches(
        self, loss: str, seed: int, size: int, tasks: Sequence[str] | None = None
    ) -> Any:
        known = {"distillation": "taught", "labels": "labeled"}
        inputs = getattr(self, known.get(loss, "inputs"))
        chosen = {task: inputs[task] for task in tasks or self.tasks}
        return shuffled_batches(chosen, size=size, seed=seed)
