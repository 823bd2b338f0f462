"""What a config decides: the data and the sizes of one comparison."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from experiments.finetune import Augment, Recipe
from experiments.lora import Lora
from experiments.suite import Suite


@dataclass(frozen=True, kw_only=True)
class Training:
    """How adapters of the tasks are trained and their merges measured.

    Attributes:
      lora: shape of the adapters.
      recipe: steps and rates.
      validation: examples of each task that scales are chosen on, at most.
      test: examples of each task in the final measurement, at most.
      augment: name of a task -> what changes its inputs at random.
      load: reads the suite that is trained, where it is not that of the comparison.
    """

    lora: Lora
    recipe: Recipe
    validation: int
    test: int
    augment: Mapping[str, Augment] = field(default_factory=dict)
    load: Callable[[], Suite] | None = None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of one experiment.

    Attributes:
      load: reads the base, the adapters' heads and, when asked, the data.
      validation: examples of each task that candidates are measured on, at most.
      test: examples of each task in the final measurement, at most.
      batch: examples in one batch of a measurement.
      learning_batch: unlabeled examples of each task in one step.
      learning_tokens: texts longer than this are not learned from; None for the 90th
        percentile.
      longest_fit: steps; candidates are taken after half of them and after all.
      schedule: of the rate of taught fits, "cosine" or "constant".
      scale_factor: multiplies the scales that data-free merges try and the starts of
        learned ones, where the best would lie at the edge of the common grid.
      logit_scale: multiplies logits where their entropy is learned from.
      anchor_batches: batches that the anchors of entropies are averaged over.
      start_batches: batches that the start of a taught fit is found with.
      reference: shape of the one adapter that is trained for all tasks.
      training: how adapters are trained; None where they are given.
      retrain: trains the adapters of all tasks anew, into a folder and with a seed.
    """

    load: Callable[[], Suite]
    validation: int
    test: int
    batch: int = 64
    learning_batch: int = 16
    learning_tokens: int | None = None
    longest_fit: int
    schedule: str = "cosine"
    scale_factor: float = 1.0
    logit_scale: float = 1.0
    anchor_batches: int = 8
    start_batches: int = 4
    reference: Lora = field(default_factory=lambda: Lora(rank=16, alpha=32))
    training: Training | None = None
    retrain: Callable[[Path, int], None] | None = None


def named_path(variable: str, what: str) -> Path:
    """The path in an environment variable.

    Raises:
      ValueError: it is not set, or there is nothing; says ``what`` it should name.
    """
    if not os.environ.get(variable):
        raise ValueError(f"set {variable} to {what}")
    path = Path(os.environ[variable])
    if not path.exists():
        raise ValueError(f"{variable}: {path} does not exist; it should be {what}")
    return path
