"""The loop of a search: asks, scores what is new, and ends when a budget is spent."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxmerge.refusals import Option, Refusal
from jaxmerge.tuning.families import Point
from jaxmerge.tuning.searches import Search
from jaxmerge.tuning.trace import Row, Trace

Evaluate = Callable[[Sequence[Point]], Iterator[Row]]


class Budget(NamedTuple):
    """When a search ends at the latest; what earlier runs of it took counts too.

    Attributes:
      evaluations: number of merges.
      minutes: that merging and scoring take.
    """

    evaluations: int | None = None
    minutes: float | None = None

    @classmethod
    def checked(cls, evaluations: int | None, minutes: float | None) -> "Budget":
        """The budget; Refusal if nothing fits into it."""
        if evaluations is not None and evaluations < 1:
            shown = Option("evaluations", str(evaluations))
            raise Refusal(shown, ": expected at least 1")
        if minutes is not None and not minutes > 0:
            raise Refusal(Option("minutes", str(minutes)), ": expected more than 0")
        return cls(evaluations, minutes)

    def room(self, trace: Trace) -> int | None:
        """How many merges may still be tried; None for any number."""
        if self.minutes is not None and trace.seconds >= 60 * self.minutes:
            return 0
        if self.evaluations is None:
            return None
        return max(self.evaluations - len(trace.rows), 0)


def run_searches(
    searches: Sequence[Search],
    evaluate: Evaluate,
    trace: Trace,
    *,
    maximise: bool,
    budget: Budget,
    report: Callable[[Row], None],
) -> bool:
    """Runs searches in turns, each batch of points after another.

    Args:
      searches: not begun.
      evaluate: scores merges, one after the other.
      trace: knows what was tried before and keeps what is tried now.
      maximise: whether a higher score is better.
      budget: when to end.
      report: called with every merge that is scored.

    Returns:
      Whether all searches came to their end.
    """
    waiting = deque((search, next(search)) for search in searches)
    while waiting:
        search, asked = waiting.popleft()
        fresh = [p for p in dict.fromkeys(asked) if trace.find(p) is None]
        for row in evaluate(fresh[: budget.room(trace)]):
            trace.add(row)
            report(row)
            if budget.room(trace) == 0:
                break
        losses = [_loss(trace, point, maximise) for point in asked]
        if None in losses:
            return False
        try:
            known = [x for x in losses if x is not None]
            waiting.append((search, search.send(known)))
        except StopIteration:
            continue
    return True


def best_row(rows: Sequence[Row], *, maximise: bool) -> Row:
    """The best of some merges, of equal ones the first.

    Raises:
      Refusal: none of them has a score.
    """
    scored = [row for row in rows if row.scored.score is not None]
    if not scored:
        reasons = [row.scored.error for row in rows] or ["nothing was tried"]
        raise Refusal(f"no merge could be scored: {reasons[-1]}")
    sign = -1 if maximise else 1
    return min(scored, key=lambda row: sign * float(row.scored.score or 0.0))


def _loss(trace: Trace, point: Point, maximise: bool) -> float | None:
    """What a search is sent; None where the point was not tried."""
    scored = trace.find(point)
    if scored is None:
        return None
    if scored.score is None:
        return float(np.inf)
    return -scored.score if maximise else scored.score


def title_of(trace: Trace, maximise: bool) -> str:
    """What a search has found so far, in a line."""
    scored = [row for row in trace.rows if row.scored.score is not None]
    if not scored:
        return "trying merges"
    best = best_row(scored, maximise=maximise)
    return f"best {best.scored.score:.4g}: {best.point.pipeline}"
