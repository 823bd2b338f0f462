"""What a config decides: the data and the sizes of one comparison."""

from collections.abc import Callable
from dataclasses import dataclass

from experiments.suite import Suite


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of one experiment.

    Attributes:
      load: reads the base, the adapters' heads and, when asked, the data.
      validation: examples of each task that candidates are measured on, at most.
      test: examples of each task in the final measurement, at most.
      batch: examples in one batch of a measurement.
      learning_batch: unlabeled examples of each task in one step.
      longest_fit: steps; candidates are taken after each quarter of them.
      logit_scale: multiplies logits where their entropy is learned from.
      anchor_batches: batches that the anchors are averaged over.
    """

    load: Callable[[], Suite]
    validation: int
    test: int
    batch: int = 64
    learning_batch: int = 16
    longest_fit: int
    logit_scale: float = 1.0
    anchor_batches: int = 8
