"""A merge on the texts of every task, beside the base and the task's own adapter."""

from collections.abc import Mapping
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from jaxmerge.diagnostics.evaluation import (
    LEVEL,
    RESAMPLES,
    Interval,
    as_json,
    interval,
)
from jaxmerge.diagnostics.likelihood import Assess
from jaxmerge.types import Update

Value = TypeVar("Value")


class TextScores(NamedTuple, Generic[Value]):
    """What holds of the base, of the own adapter and of the merge."""

    base: Value
    own: Value
    merged: Value


class TaskTexts(NamedTuple):
    """One task.

    Attributes:
      rows: texts.
      tokens: those of them that count.
      nats: per token.
      exact: share of the completions that greedy decoding gives, see `Likelihoods`;
        None for texts without prompts.
      kept: of what the own adapter gains over the base the share that the merge gains,
        ``(base - merged) / (base - own)`` in nats; None where it is not clear that the
        own adapter gains anything.
    """

    rows: int
    tokens: int
    nats: TextScores[float]
    exact: TextScores[Interval | None]
    kept: Interval | None

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        exact = {whose: as_json(x) for whose, x in self.exact._asdict().items()}
        told = {"nats": self.nats._asdict(), "exact": exact, "kept": as_json(self.kept)}
        return {**self._asdict(), **told}


class TextEvaluation(NamedTuple):
    """All tasks.

    Attributes:
      tasks: task -> what was found.
      mean_kept: mean over the tasks whose own adapter gains; None if none does.
    """

    tasks: dict[str, TaskTexts]
    mean_kept: Interval | None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know."""
        return tuple(
            f"the adapter of {task} does not clearly gain over the base, so there is "
            "no share of it that the merge keeps"
            for task, found in self.tasks.items()
            if found.kept is None
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        tasks = {task: found.to_json() for task, found in self.tasks.items()}
        return {"mean_kept": as_json(self.mean_kept), "tasks": tasks}


def evaluate_texts(
    assess: Assess,
    own: Mapping[str, Mapping[str, Update]],
    merged: Mapping[str, Update],
    *,
    seed: int = 0,
) -> TextEvaluation:
    """Measures a merge, the base and every own adapter on the texts of each task.

    Intervals are those of the paired bootstrap: the same texts are drawn for all three,
    apart for each task. An own adapter gains clearly if it does in more than 97.5 % of
    the draws.

    Args:
      assess: see `likelihoods`.
      own: task -> updates of its own adapter.
      merged: updates of the merge.
      seed: of the bootstrap.
    """
    tasks, drawn = {}, []
    rng = np.random.default_rng(seed)
    for task, updates in own.items():
        found = [assess(task, u) for u in ({}, updates, merged)]
        base, adapted, of_merge = (x.nats for x in found)
        rows = len(base)
        times = rng.multinomial(rows, np.full(rows, 1 / rows), RESAMPLES)
        gains, kept = (times @ (base - x) for x in (adapted, of_merge))
        share = None
        if np.mean(gains > 0) > (1 + LEVEL) / 2:
            ratios = kept[gains > 0] / gains[gains > 0]
            value = (base - of_merge).sum() / (base - adapted).sum()
            share = interval(float(value), ratios)
            drawn.append(np.resize(ratios, RESAMPLES))
        tasks[task] = TaskTexts(
            rows=rows,
            tokens=int(found[0].tokens.sum()),
            nats=TextScores(*(x.per_token for x in found)),
            exact=TextScores(*(x.share_exact for x in found)),
            kept=share,
        )
    shares = [found.kept.value for found in tasks.values() if found.kept is not None]
    mean = interval(float(np.mean(shares)), np.mean(drawn, axis=0)) if shares else None
    return TextEvaluation(tasks, mean)
