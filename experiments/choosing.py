"""Which candidate of a method is taken to test, and what it did there."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from experiments.records import Records

CLOSE = 0.005  # half a point of accuracy, what another seed may change

Candidate = TypeVar("Candidate")


def best_candidate(
    tried: Sequence[Candidate], score: Callable[[Candidate, int], float], *, seeds: int
) -> Candidate:
    """The candidate of the highest score.

    All are scored with one seed. Those that are `CLOSE` to the best are told apart by
    their scores over all seeds.

    Args:
      tried: candidates; of equal ones the first is taken.
      score: of a candidate, the mean over so many seeds.
      seeds: number of seeds; 1 where nothing is random.

    >>> of_seeds = {"a": [0.80, 0.70], "b": [0.798, 0.80], "c": [0.5, 1.0]}
    >>> best_candidate("abc", lambda name, n: sum(of_seeds[name][:n]) / n, seeds=1)
    'a'
    >>> best_candidate("abc", lambda name, n: sum(of_seeds[name][:n]) / n, seeds=2)
    'b'
    """
    scores = np.array([score(candidate, 1) for candidate in tried])
    close = np.flatnonzero(scores >= scores.max() - CLOSE)
    if len(close) > 1 and seeds > 1:
        of_all = [score(tried[index], seeds) for index in close]
        return tried[close[int(np.argmax(of_all))]]
    return tried[int(np.argmax(scores))]


def last_choice(records: Records, method: str) -> dict[str, Any] | None:
    """The candidate that was chosen last, None if there is none yet."""
    rows = records.all(kind="choice", method=method)
    return rows[-1]["candidate"] if rows else None


def known_choice(records: Records, method: str) -> dict[str, Any]:
    """The candidate that was chosen last.

    Raises:
      ValueError: there is none.
    """
    candidate = last_choice(records, method)
    if candidate is None:
        raise ValueError(
            f"{records.path}: no choice of {method!r}; run the comparison first"
        )
    return candidate


def rows_on_test(records: Records, method: str) -> list[dict[str, Any]]:
    """The rows on test of the last choice, one for each seed."""
    chosen = last_choice(records, method)
    of = {"method": method, "candidate": chosen, "part": "test"}
    return records.all(kind="merge", **of)
