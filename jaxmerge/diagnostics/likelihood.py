"""How likely the texts of every task are to a causal language model, with an adapter,
with a merge and without."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.diagnostics.alone import SIGNIFICANT, sign_test
from jaxmerge.diagnostics.evaluation import LEVEL, RESAMPLES, Interval, interval
from jaxmerge.io import Adapters
from jaxmerge.learning.token_objectives import token_nats
from jaxmerge.models import with_updates
from jaxmerge.refusals import Refusal
from jaxmerge.stacks import task_updates
from jaxmerge.tasks.bases import Base
from jaxmerge.tasks.batching import outputs_of
from jaxmerge.tasks.next_tokens import NEXT, counted_tokens
from jaxmerge.tasks.unlabeled import Unlabeled
from jaxmerge.types import Update


class Likelihoods(NamedTuple):
    """What a model says of the N texts of a task.

    Attributes:
      nats: [N], sum of ``-log p`` over the tokens of a text that count.
      tokens: [N], how many these are.
      exact: [N], whether each of them is the likeliest, so that greedy decoding after
        the prompt gives the completion, word for word.
    """

    nats: np.ndarray
    tokens: np.ndarray
    exact: np.ndarray

    @property
    def per_token(self) -> float:
        """Nats per token, over all tokens that count."""
        return float(self.nats.sum() / self.tokens.sum())


Assess = Callable[[str, Mapping[str, Update]], Likelihoods]


def likelihoods(
    base: Base,
    unlabeled: Unlabeled,
    *,
    batch: int = 64,
    report: Callable[[str, int], None] | None = None,
) -> Assess:
    """A function from a task and updates to the likelihoods of its texts.

    Args:
      base: a causal language model.
      unlabeled: texts of every task.
      batch: texts that go through the model at a time.
      report: called with a task and the texts of it that were read, after each batch.

    Returns:
      ``(task, updates) -> Likelihoods``. It raises a `Refusal` for what is not finite.
    """
    vocabulary = base.vocabulary
    if vocabulary is None:
        raise ValueError(f"{base.folder}: was not read as a causal language model")

    @jax.jit
    def assess(params: Any, updates: Mapping[str, Update], inputs: Any) -> jax.Array:
        hidden = with_updates(base.apply, updates)(params, inputs)
        nats, likeliest = token_nats(hidden, inputs[NEXT], vocabulary(params))
        exact = likeliest.all(axis=1).astype(nats.dtype)
        return jnp.stack([nats.sum(axis=1), exact], axis=1)

    def of_task(task: str, updates: Mapping[str, Update]) -> Likelihoods:
        own = unlabeled.inputs[task]
        told = None if report is None else partial(report, task)
        run = partial(assess, base.params, updates)
        nats, exact = outputs_of(base, own, batch, run, report=told).T
        if not np.isfinite(nats).all():
            raise Refusal(
                f"{base.folder}: the logits of {task} are not finite; look for weights "
                "that are far too large"
            )
        tokens = counted_tokens(own).sum(axis=1)
        return Likelihoods(nats.astype(np.float64), tokens, exact == 1)

    return of_task


class TextStanding(NamedTuple):
    """One adapter against its base, on N texts.

    Attributes:
      rows: texts, N.
      tokens: those of them that count.
      changes: whether any of its updates is not zero.
      nats: per token, with the adapter.
      base_nats: without it.
      gain: what the adapter takes off, nats per token.
      standard_error: of the gain, as a ratio of sums over texts,
        ``sqrt(N / (N - 1) sum (g_i - gain n_i)^2) / sum n_i``; nan for one text.
      gained: texts that are likelier with the adapter.
      lost: texts that are likelier without it.
      p_value: of the sign test, two-sided: as many gained and lost as if by the toss of
        a coin.
      exact: share of the texts that greedy decoding gives with the adapter.
      base_exact: without it.
    """

    rows: int
    tokens: int
    changes: bool
    nats: float
    base_nats: float
    gain: float
    standard_error: float
    gained: int
    lost: int
    p_value: float
    exact: float
    base_exact: float

    @property
    def is_worse(self) -> bool:
        """Whether it clearly loses against its base."""
        return self.p_value < SIGNIFICANT and self.lost > self.gained

    @property
    def verdict(self) -> str:
        """The verdict on the adapter in a few words."""
        if not self.changes:
            return "does nothing"
        if self.p_value >= SIGNIFICANT:
            return "no clear difference"
        return "WORSE than no adapter" if self.is_worse else "helps"

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {**self._asdict(), "verdict": self.verdict}


def texts_alone(adapters: Adapters, assess: Assess) -> dict[str, TextStanding]:
    """Measures every adapter, and the base on the same texts.

    Args:
      adapters: T adapters.
      assess: see `likelihoods`.

    Returns:
      task -> what was found.
    """
    found = {}
    for index, task in enumerate(adapters.names):
        updates = task_updates(adapters.stacks, index)
        changes = any(stack.ranks[index] for stack in adapters.stacks.values())
        without = assess(task, {})
        adapted = assess(task, updates) if changes else without
        found[task] = text_standing(adapted, without, changes=changes)
    return found


def text_standing(
    adapted: Likelihoods, without: Likelihoods, *, changes: bool = True
) -> TextStanding:
    """Compares the likelihoods with an adapter and without it.

    >>> tokens, exact = np.array([2, 4]), np.array([False, True])
    >>> one = Likelihoods(np.array([1.0, 2.0]), tokens, exact)
    >>> other = Likelihoods(np.array([2.0, 4.0]), tokens, exact)
    >>> text_standing(one, other).gain, text_standing(one, other).verdict
    (0.5, 'no clear difference')
    """
    tokens, rows = adapted.tokens, len(adapted.tokens)
    gains = without.nats - adapted.nats
    gain = float(gains.sum() / tokens.sum())
    apart = gains - gain * tokens
    error = math.nan
    if rows > 1:
        error = math.sqrt(rows / (rows - 1) * float(apart @ apart)) / int(tokens.sum())
    gained, lost = int((gains > 0).sum()), int((gains < 0).sum())
    return TextStanding(
        rows=rows,
        tokens=int(tokens.sum()),
        changes=changes,
        nats=adapted.per_token,
        base_nats=without.per_token,
        gain=gain,
        standard_error=error,
        gained=gained,
        lost=lost,
        p_value=sign_test(gained, lost),
        exact=float(adapted.exact.mean()),
        base_exact=float(without.exact.mean()),
    )


class TextScores(NamedTuple):
    """A number for the base, for the own adapter and for the merge."""

    base: float
    own: float
    merged: float


class TaskTexts(NamedTuple):
    """One task.

    Attributes:
      rows: texts.
      tokens: those of them that count.
      nats: per token.
      exact: share of the texts that greedy decoding gives.
      kept: of what the own adapter gains over the base the share that the merge gains,
        ``(base - merged) / (base - own)`` in nats; None where it is not clear that the
        own adapter gains anything.
    """

    rows: int
    tokens: int
    nats: TextScores
    exact: TextScores
    kept: Interval | None

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        kept = None if self.kept is None else self.kept._asdict()
        nats, exact = self.nats._asdict(), self.exact._asdict()
        return {**self._asdict(), "nats": nats, "exact": exact, "kept": kept}


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
        mean = None if self.mean_kept is None else self.mean_kept._asdict()
        tasks = {task: found.to_json() for task, found in self.tasks.items()}
        return {"mean_kept": mean, "tasks": tasks}


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
            exact=TextScores(*(float(x.exact.mean()) for x in found)),
            kept=share,
        )
    shares = [found.kept.value for found in tasks.values() if found.kept is not None]
    mean = interval(float(np.mean(shares)), np.mean(drawn, axis=0)) if shares else None
    return TextEvaluation(tasks, mean)
