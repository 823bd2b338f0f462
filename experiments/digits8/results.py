"""One line of ``results.jsonl``."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """One merged model on the test images.

    Attributes:
      method: its name in the table.
      pipeline: the whole pipeline, scale included; "" for the base alone.
      seed: of its random steps, or of the batches it learned from; None without them.
      validation: mean normalised accuracy on validation, by which scale and density of
        merges that are not learned were chosen.
      accuracy: task -> share of correct test images.
      normalised: task -> accuracy divided by that of the task's own adapter.
      mean_normalised: mean over tasks.
      seconds: merging all modules once, without compilation; for learned merges the
        whole fit, with it.
    """

    method: str
    pipeline: str
    seed: int | None
    validation: float
    accuracy: dict[str, float]
    normalised: dict[str, float]
    mean_normalised: float
    seconds: float
