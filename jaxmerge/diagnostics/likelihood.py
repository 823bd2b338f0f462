"""How likely texts are to a causal language model, and each adapter alone by that."""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.diagnostics.alone import (
    clearly_worse,
    in_words,
    sign_test,
    with_and_without,
)
from jaxmerge.diagnostics.evaluation import Interval, as_json, wilson
from jaxmerge.io import Adapters
from jaxmerge.learning.token_logits import head_and_body
from jaxmerge.learning.token_objectives import token_nats
from jaxmerge.models import with_updates
from jaxmerge.models.decoder import LM_HEAD
from jaxmerge.refusals import Refusal
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
      exact: [N], whether greedy decoding after the prompt gives the completion and
        ends: each of its tokens, with the one that ends it, has the largest logit after
        those before it. False where the completion was truncated; None for texts
        without prompts.
    """

    nats: np.ndarray
    tokens: np.ndarray
    exact: np.ndarray | None

    @property
    def per_token(self) -> float:
        """Nats per token, over all tokens that count."""
        return float(self.nats.sum() / self.tokens.sum())

    @property
    def share_exact(self) -> Interval | None:
        """Share of the completions that greedy decoding gives."""
        return None if self.exact is None else wilson(self.exact)


_STRANGE = 0.75  # of log V: SmolLM2-135M has 0.87 with its words permuted, else 0.14

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
    rows = base.vocabulary
    if rows is None:
        raise ValueError(f"{base.folder}: was not read as a causal language model")

    @jax.jit
    def assess(params: Any, updates: Mapping[str, Update], inputs: Any) -> jax.Array:
        head, body = head_and_body(rows(params), updates, LM_HEAD)
        hidden = with_updates(base.apply, body)(params, inputs)
        nats, likeliest = token_nats(hidden, inputs[NEXT], head)
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
        whole = unlabeled.whole.get(task)
        hits = None if whole is None else whole & (exact == 1)
        return Likelihoods(nats.astype(np.float64), tokens, hits)

    return of_task


def hardly_known(base: Base, nats: Mapping[str, float]) -> Iterator[str]:
    """Notes on texts of which the base knows little more than one who guesses.

    Args:
      base: a causal language model of V words.
      nats: task -> nats per token without adapters; ``log V`` by guessing.
    """
    if base.vocabulary is None:
        return
    words = jax.eval_shape(base.vocabulary, base.params).shape[0]
    for task, found in nats.items():
        if found > _STRANGE * math.log(words):
            yield (
                f"without adapters the texts of {task} have {found:.2f} nats per "
                f"token, by guessing among {words} tokens {math.log(words):.2f}: so "
                f"have weights that were never trained, or whose tokenizer.json in "
                f"{base.folder} is that of another model"
            )


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
      exact: share of the completions that greedy decoding gives with the adapter; None
        for texts without prompts.
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
    exact: Interval | None
    base_exact: Interval | None

    @property
    def is_worse(self) -> bool:
        """Whether it clearly loses against its base."""
        return clearly_worse(self)

    @property
    def verdict(self) -> str:
        """The verdict on the adapter in a few words."""
        return in_words(self.changes, self)

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        shares = {"exact": self.exact, "base_exact": self.base_exact}
        exact = {name: as_json(share) for name, share in shares.items()}
        return {**self._asdict(), **exact, "verdict": self.verdict}


def texts_alone(adapters: Adapters, assess: Assess) -> dict[str, TextStanding]:
    """Measures every adapter, and the base on the same texts.

    Args:
      adapters: T adapters.
      assess: see `likelihoods`.

    Returns:
      task -> what was found.
    """
    return {
        task: text_standing(*found, changes=changes)
        for task, found, changes in with_and_without(adapters, assess)
    }


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
        exact=adapted.share_exact,
        base_exact=without.share_exact,
    )
