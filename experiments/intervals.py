"""How sure a difference between two merges is, from answers to the same inputs."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

Right = Mapping[str, np.ndarray]  # task -> which answers are right, [N]
DRAWS = 2000
LEVEL = 95  # percent


class Difference(NamedTuple):
    """A difference of mean normalised accuracies, in points, and its interval."""

    value: float
    low: float
    high: float

    def shown(self) -> str:
        """As a cell of a table.

        >>> Difference(1.26, -0.5, 3.0).shown()
        '+1.3 [-0.5, +3.0]'
        """
        return f"{self.value:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


def difference(
    one: Sequence[Right], other: Sequence[Right], own: Right, *, seed: int = 0
) -> Difference:
    """How far one method is ahead of another, by the paired bootstrap.

    The same inputs of each task are drawn, with replacement, for both methods and for
    the own adapter. The answers of a method under several seeds are averaged first, so
    that the interval is that of the inputs; the spread over seeds stands beside it.

    Args:
      one: answers of a method, for each of its seeds.
      other: those of the other.
      own: answers of each task's own adapter.
      seed: of the draws.

    >>> all_right, none = {"a": np.ones(4, bool)}, {"a": np.zeros(4, bool)}
    >>> difference([all_right], [none], all_right)
    Difference(value=100.0, low=100.0, high=100.0)
    """
    rng = np.random.default_rng(seed)
    points, drawn = [], []
    for task, right in own.items():
        ahead = _mean(one, task) - _mean(other, task)
        rows = rng.integers(len(right), size=(DRAWS, len(right)))
        points.append(ahead.mean() / right.mean())
        drawn.append(ahead[rows].mean(1) / np.maximum(right[rows].mean(1), 1e-9))
    tail = (100 - LEVEL) / 2
    low, high = np.percentile(100 * np.mean(drawn, axis=0), [tail, 100 - tail])
    return Difference(100 * float(np.mean(points)), float(low), float(high))


def _mean(seeds: Sequence[Right], task: str) -> np.ndarray:
    return np.mean([right[task] for right in seeds], axis=0)
