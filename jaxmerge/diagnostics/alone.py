"""Each adapter alone against the base model without it, measured on its own data."""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.io import Adapters
from jaxmerge.learning.objectives import entropy
from jaxmerge.stacks import task_updates
from jaxmerge.tasks.bases import Base
from jaxmerge.tasks.predict import predictor
from jaxmerge.tasks.unlabeled import Unlabeled
from jaxmerge.types import Update

Measured = TypeVar("Measured")
SIGNIFICANT = 0.05  # two-sided p below which a difference is called clear


class PairedTest(Protocol):
    """Inputs gained and lost by an adapter, and a two-sided p-value of the two."""

    @property
    def gained(self) -> int: ...

    @property
    def lost(self) -> int: ...

    @property
    def p_value(self) -> float: ...


def clearly_worse(test: PairedTest) -> bool:
    """Whether an adapter clearly loses against its base."""
    return test.p_value < SIGNIFICANT and test.lost > test.gained


def in_words(changes: bool, test: PairedTest | None) -> str:
    """The verdict on an adapter in a few words.

    Args:
      changes: whether any of its updates is not zero.
      test: None without labels.
    """
    if not changes:
        return "does nothing"
    if test is None:
        return "no labels"
    if test.p_value >= SIGNIFICANT:
        return "no clear difference"
    return "WORSE than no adapter" if clearly_worse(test) else "helps"


class Predictions(NamedTuple):
    """What a model says about N inputs.

    Attributes:
      classes: [N], the most likely ones.
      entropies: [N], of the predicted probabilities, in nats.
    """

    classes: np.ndarray
    entropies: np.ndarray


class Score(NamedTuple):
    """Two models on the same N labeled inputs, d being their difference in correctness.

    Attributes:
      accuracy: with the adapter.
      base_accuracy: without it, with the same head.
      most_frequent: accuracy of naming the most frequent class every time.
      gained: inputs that only the adapter gets right.
      lost: inputs that only the base gets right.
      difference: mean of d, in -1, 0, 1: ``(gained - lost) / N``.
      standard_error: of the difference, ``sqrt(sum (d - mean d)^2 / (N (N - 1)))``; as
        the inputs are the same, what both get right or wrong adds nothing. nan for one
        input.
      p_value: of McNemar's exact test, two-sided: of the inputs where they differ, as
        many gained and lost as if by the toss of a coin.
    """

    accuracy: float
    base_accuracy: float
    most_frequent: float
    gained: int
    lost: int
    difference: float
    standard_error: float
    p_value: float


class Standing(NamedTuple):
    """One adapter against its base.

    Attributes:
      rows: inputs.
      changes: whether any of its updates is not zero.
      entropy: mean over the inputs, in nats.
      base_entropy: the same without the adapter.
      agreement: share of inputs for which adapter and base name the same class.
      score: None without labels.
    """

    rows: int
    changes: bool
    entropy: float
    base_entropy: float
    agreement: float
    score: Score | None

    @property
    def is_worse(self) -> bool:
        """Whether it clearly loses against its base."""
        return self.score is not None and clearly_worse(self.score)

    @property
    def verdict(self) -> str:
        """The verdict on the adapter in a few words."""
        return in_words(self.changes, self.score)

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        measured = self._asdict()
        score = measured.pop("score")
        scores = {} if score is None else score._asdict()
        return {**measured, **scores, "verdict": self.verdict}


def alone(
    base: Base,
    adapters: Adapters,
    heads: Mapping[str, Any],
    unlabeled: Unlabeled,
    labels: Mapping[str, np.ndarray | None],
    *,
    batch: int = 64,
    logit_scale: float = 1.0,
    report: Callable[[str, int], None] | None = None,
) -> dict[str, Standing]:
    """Measures every adapter, and the base with the head of that adapter.

    Args:
      base: the model.
      adapters: T adapters of it.
      heads: task -> head, see `task_heads`.
      unlabeled: inputs of every task.
      labels: task -> classes [N], or None, see `load_labels`.
      batch: inputs that go through the model at a time.
      logit_scale: multiplies the logits before the softmax, for the entropies.
      report: called with a task and the inputs of it that were read, after each batch,
        once with the adapter and once without.

    Returns:
      task -> what was found.

    Raises:
      ValueError: a model whose logits are not finite.
    """
    predict = predictor(base, heads, unlabeled, batch=batch, report=report)
    each = jax.vmap(partial(entropy, logit_scale=logit_scale))

    def measure(task: str, updates: Mapping[str, Update]) -> Predictions:
        logits = predict(task, updates)
        return Predictions(logits.argmax(axis=1), np.asarray(each(jnp.asarray(logits))))

    return {
        task: standing(*measured, labels[task], changes=changes)
        for task, measured, changes in with_and_without(adapters, measure)
    }


def with_and_without(
    adapters: Adapters, measure: Callable[[str, Mapping[str, Update]], Measured]
) -> Iterator[tuple[str, tuple[Measured, Measured], bool]]:
    """Every task, measured with its adapter and without it.

    Args:
      adapters: T adapters.
      measure: ``(task, updates) -> what was found``.

    Returns:
      An iterator of (task, (with, without), whether any of its updates is not zero); an
      adapter that changes nothing is not measured.
    """
    for index, task in enumerate(adapters.names):
        updates = task_updates(adapters.stacks, index)
        changes = any(stack.ranks[index] for stack in adapters.stacks.values())
        without = measure(task, {})
        yield task, (measure(task, updates) if changes else without, without), changes


def standing(
    adapted: Predictions,
    without: Predictions,
    labels: np.ndarray | None,
    *,
    changes: bool = True,
) -> Standing:
    """Compares the predictions with an adapter and without it.

    >>> x, y = (Predictions(np.array(c), np.zeros(4)) for c in ([0, 1, 1, 0], [0] * 4))
    >>> standing(x, y, np.array([0, 1, 1, 1])).score._asdict()  # doctest: +ELLIPSIS
    {'accuracy': 0.75, 'base_accuracy': 0.25, 'most_frequent': 0.75, 'gained': 2, ...
    >>> standing(x, y, None).agreement, standing(x, y, None).verdict
    (0.5, 'no labels')
    """
    return Standing(
        rows=len(adapted.classes),
        changes=changes,
        entropy=float(adapted.entropies.mean(dtype=np.float64)),
        base_entropy=float(without.entropies.mean(dtype=np.float64)),
        agreement=float(np.mean(adapted.classes == without.classes)),
        score=None if labels is None else _score(adapted, without, labels),
    )


def _score(adapted: Predictions, without: Predictions, labels: np.ndarray) -> Score:
    right, base_right = adapted.classes == labels, without.classes == labels
    apart = right.astype(int) - base_right.astype(int)
    gained, lost = int((apart > 0).sum()), int((apart < 0).sum())
    rows = len(labels)
    spread = apart.std(ddof=1) / math.sqrt(rows) if rows > 1 else math.nan
    return Score(
        accuracy=float(right.mean()),
        base_accuracy=float(base_right.mean()),
        most_frequent=float(np.bincount(labels).max() / rows),
        gained=gained,
        lost=lost,
        difference=float(apart.mean()),
        standard_error=float(spread),
        p_value=sign_test(gained, lost),
    )


def sign_test(gained: int, lost: int) -> float:
    """Exact two-sided p-value of so uneven a split of ``gained + lost`` coin tosses.

    ``min(1, 2 sum_{k <= min} C(n, k) / 2^n)``, in whole numbers up to the division.

    >>> sign_test(6, 0), sign_test(2, 5), sign_test(3, 3), sign_test(0, 0)
    (0.03125, 0.453125, 1.0, 1.0)
    """
    tosses, term, ways = gained + lost, 1, 0
    for k in range(min(gained, lost) + 1):
        ways += term
        term = term * (tosses - k) // (k + 1)
    return min(1.0, 2 * ways / 2**tosses)
