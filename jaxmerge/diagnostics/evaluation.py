"""A merge on every task, beside the base and the task's own adapter."""

from collections.abc import Mapping
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from jaxmerge.tasks.predict import Predict
from jaxmerge.types import Update

RESAMPLES = 2000
LEVEL = 0.95


class Interval(NamedTuple):
    """A number, and between which bounds it lies with 95 % confidence."""

    value: float
    low: float
    high: float


class TaskHits(NamedTuple):
    """Which inputs of a task are classified right, [N] of bool."""

    base: np.ndarray
    own: np.ndarray
    merged: np.ndarray


class TaskEvaluation(NamedTuple):
    """One task.

    Attributes:
      rows: inputs.
      base: accuracy without any adapter, with the head of the own one.
      own: accuracy with the own adapter.
      merged: accuracy of the merge.
      normalised: of the merge, divided by that of the own adapter.
      agreement: share of inputs for which merge and own adapter name one class.
    """

    rows: int
    base: float
    own: float
    merged: float
    normalised: Interval
    agreement: float


class Evaluation(NamedTuple):
    """All tasks.

    Attributes:
      tasks: task -> what was found.
      mean_normalised: mean over the tasks.
      mean_base: the same of the base.
      hits: task -> which inputs are right.
    """

    tasks: dict[str, TaskEvaluation]
    mean_normalised: Interval
    mean_base: float
    hits: dict[str, TaskHits]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know."""
        return ()

    def to_json(self) -> dict[str, Any]:
        """As JSON values, without the single inputs."""
        return {
            "mean_normalised": self.mean_normalised._asdict(),
            "mean_base": self.mean_base,
            "tasks": {
                task: {**found._asdict(), "normalised": found.normalised._asdict()}
                for task, found in self.tasks.items()
            },
        }


def evaluate_merge(
    predict: Predict,
    own: Mapping[str, Mapping[str, Update]],
    merged: Mapping[str, Update],
    labels: Mapping[str, np.ndarray],
    *,
    seed: int = 0,
) -> Evaluation:
    """Measures a merge, the base and every own adapter on labeled inputs.

    Intervals are those of the paired bootstrap: the same inputs are drawn for the merge
    and for the own adapter, apart for each task.

    Args:
      predict: see `jaxmerge.tasks.predictor`.
      own: task -> updates of its own adapter.
      merged: updates of the merge.
      labels: task -> classes [N].
      seed: of the bootstrap.
    """
    tasks, hits, drawn = {}, {}, []
    rng = np.random.default_rng(seed)
    for task, updates in own.items():
        said = [predict(task, u).argmax(axis=-1) for u in ({}, updates, merged)]
        right = TaskHits(*(classes == labels[task] for classes in said))
        ratios = _resampled_ratios(right.merged, right.own, rng)
        drawn.append(ratios)
        accuracies = [float(x.mean()) for x in right]
        tasks[task] = TaskEvaluation(
            len(labels[task]),
            *accuracies,
            normalised=interval(_ratio(accuracies[2], accuracies[1]), ratios),
            agreement=float(np.mean(said[1] == said[2])),
        )
        hits[task] = right
    mean = float(np.mean([found.normalised.value for found in tasks.values()]))
    return Evaluation(
        tasks=tasks,
        mean_normalised=interval(mean, np.mean(drawn, axis=0)),
        mean_base=float(np.mean([_ratio(x.base, x.own) for x in tasks.values()])),
        hits=hits,
    )


def _resampled_ratios(
    merged: np.ndarray, own: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Normalised accuracies of inputs drawn with replacement, [RESAMPLES].

    Drawing N inputs is drawing how many are right for both, for one and for none.
    """
    kinds = 2 * merged.astype(int) + own
    shares = np.bincount(kinds, minlength=4) / len(kinds)
    _, own_alone, merged_alone, both = rng.multinomial(len(kinds), shares, RESAMPLES).T
    right_of_own = own_alone + both
    return np.where(
        right_of_own > 0, (merged_alone + both) / np.maximum(right_of_own, 1), 0.0
    )


def _ratio(one: float, other: float) -> float:
    return one / other if other else 0.0


def wilson(hits: np.ndarray) -> Interval:
    """A share of N inputs, between the bounds of Wilson's score interval.

    ``(p + z^2 / 2N -+ z sqrt(p (1 - p) / N + z^2 / 4N^2)) / (1 + z^2 / N)``: unlike the
    bootstrap it tells how little a share of 0 or 1 of a few inputs says.

    >>> [round(x, 3) for x in wilson(np.zeros(64, bool))]
    [0.0, 0.0, 0.057]
    """
    p, n = float(hits.mean()), len(hits)
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    middle, reach = p + z * z / (2 * n), z * (p * (1 - p) / n + (z / n) ** 2 / 4) ** 0.5
    bounds = ((middle + sign * reach) / (1 + z * z / n) for sign in (-1, 1))
    low, high = (min(max(x, 0.0), 1.0) for x in bounds)
    return Interval(p, low, high)


def as_json(found: Interval | None) -> dict[str, float] | None:
    """An interval as JSON values."""
    return None if found is None else found._asdict()


def interval(value: float, drawn: np.ndarray) -> Interval:
    """A number with the interval of what a bootstrap has drawn."""
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Interval(value, float(low), float(high))
