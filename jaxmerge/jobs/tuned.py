"""What a search over merges has found, and what it had when it was stopped."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxmerge.jobs.merging import Merged
from jaxmerge.tuning.progression import best_row
from jaxmerge.tuning.trace import Row


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What a search has tried, whether or not it came to its end.

    Attributes:
      searched: the pipelines, their ranges in braces.
      score: its name, or the command.
      maximise: whether a higher score is better.
      rows: every merge that was tried.
      trace: folder in which the rows are kept.
    """

    searched: tuple[str, ...]
    score: str
    maximise: bool
    rows: tuple[Row, ...]
    trace: Path | None

    @property
    def best(self) -> Row:
        """The best merge that was tried; Refusal if none of them has a score."""
        return best_row(self.rows, maximise=self.maximise)

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        scored = any(row.scored.score is not None for row in self.rows)
        return {
            "searched": list(self.searched),
            "score": self.score,
            "maximise": self.maximise,
            "best": self.best.to_json() if scored else None,
            "finished": False,
            "tried": [row.to_json() for row in self.rows],
            "trace": None if self.trace is None else str(self.trace),
        }


class SearchStopped(KeyboardInterrupt):
    """A search that was interrupted while it tried merges.

    Attributes:
      tried: what it had tried by then.
    """

    def __init__(self, tried: Tried):
        super().__init__(f"stopped after {len(tried.rows)} merges")
        self.tried = tried


@dataclass(frozen=True, kw_only=True)
class Tuned(Tried):
    """What a search over merges has found.

    Attributes:
      seed: with which `jaxmerge.merge` repeats the best; None where nothing is random.
      finished: whether the search came to its end before its budget did.
      merged: the best merge as it was written.
      plot: file that was written.
      notes: what a reader should know.
    """

    seed: int | None
    finished: bool
    merged: Merged | None
    plot: Path | None
    notes: tuple[str, ...]

    @property
    def pipeline(self) -> str:
        """Of the best merge; `jaxmerge.merge` takes it, and so the three below."""
        return self.best.point.pipeline

    @property
    def weights(self) -> tuple[float, ...] | None:
        """Weights of the tasks in the best merge, None for ones."""
        return self.best.point.weights

    @property
    def leave_out(self) -> tuple[str, ...]:
        """What takes no part in the best merge."""
        return self.best.point.left_out

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {
            **super().to_json(),
            "best": {**self.best.to_json(), "seed": self.seed},
            "finished": self.finished,
            "merged": None if self.merged is None else self.merged.to_json(),
            "plot": None if self.plot is None else str(self.plot),
            "notes": list(self.notes),
        }
