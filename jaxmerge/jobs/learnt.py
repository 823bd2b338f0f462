"""A learned merge that was written, as its command tells of it."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxmerge.io import SaveReport
from jaxmerge.jobs.fit_recipe import Outcome
from jaxmerge.jobs.learn_recipe import LearnRecipe

_AVERAGED = 10  # steps at the start and at the end of the history
_NAMES = {"null-space": "null_space_ratio"}  # of losses, in JSON


@dataclass(frozen=True)
class Learnt:
    """A learned merge that was written.

    Attributes:
      recipe: how it was learned.
      adapters: names of the tasks.
      outcome: of the fit.
      saved: what was written.
      record: the record of the recipe, as it was written.
      seconds: time of the whole job.
      size: bytes of the files that were written.
      notes: what a reader should know.
    """

    recipe: LearnRecipe
    adapters: tuple[str, ...]
    outcome: Outcome
    saved: SaveReport
    record: dict[str, Any]
    seconds: float
    size: int
    notes: tuple[str, ...]

    @property
    def objective(self) -> dict[str, float]:
        """Means of the objective over the first and the last steps."""
        return _ends(self.outcome.history.objective)

    @property
    def losses(self) -> dict[str, dict[str, float]]:
        """task -> loss with its adapter alone, and means over first and last steps."""
        history = self.outcome.history.losses.T
        found = zip(self.adapters, self.outcome.anchors, history, strict=True)
        return {task: {"alone": alone, **_ends(x)} for task, alone, x in found}

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {
            "recipe": self.record,
            "adapters": list(self.adapters),
            "objective": self.objective,
            "start": self.outcome.start,
            _NAMES.get(self.recipe.loss, self.recipe.loss): self.losses,
            "predictions": {
                task: {
                    "before": then._asdict(),
                    "after": self.outcome.after[task]._asdict(),
                }
                for task, then in self.outcome.before.items()
            },
            "seconds": round(self.seconds, 3),
            "bytes": self.size,
            "notes": list(self.notes),
            **self.saved.to_json(),
        }


def _ends(values: np.ndarray) -> dict[str, float]:
    """Means of some values over the first and the last steps."""
    count = max(1, min(_AVERAGED, len(values) // 2))
    first, last = values[:count].mean(), values[-count:].mean()
    return {"first": float(first), "last": float(last)}
