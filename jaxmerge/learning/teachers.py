"""What the own adapter of every task says of its inputs, asked once for each."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxmerge.io import Adapters
from jaxmerge.learning.distillation import Taught
from jaxmerge.learning.token_logits import head_and_body
from jaxmerge.learning.top_tokens import TOP, TopTokens, top_tokens
from jaxmerge.models import with_updates
from jaxmerge.models.decoder import LM_HEAD
from jaxmerge.refusals import Option, Refusal
from jaxmerge.stacks import task_updates
from jaxmerge.tasks.bases import Base
from jaxmerge.tasks.batching import outputs_of
from jaxmerge.tasks.next_tokens import counted_tokens
from jaxmerge.tasks.predict import predictor
from jaxmerge.tasks.unlabeled import Unlabeled
from jaxmerge.types import Update

Report = Callable[[str, int], None]
Ask = Callable[[str, Mapping[str, Update]], Any]


def ask_teachers(
    base: Base,
    adapters: Adapters,
    heads: Mapping[str, Any],
    unlabeled: Unlabeled,
    *,
    batch: int = 64,
    top: int | None = None,
    temperature: float = 1.0,
    report: Report | None = None,
) -> dict[str, Any]:
    """task -> what its own adapter says of every input, [N, ...].

    Args:
      base: the model.
      adapters: T adapters of it.
      heads: task -> head; empty for features, or last hidden states.
      unlabeled: inputs of every task.
      batch: inputs that go through the model at a time.
      top: of causal language models: `TopTokens` in the place of hidden states.
      temperature: of `TopTokens`.
      report: called with a task and the inputs of it that were read, after each batch.
    """
    predict: Ask = predictor(base, heads, unlabeled, batch=batch, report=report)
    if top is not None:
        how = {"k": top, "temperature": temperature}
        predict = _of_tokens(base, unlabeled, batch, report, **how)
    return {
        task: predict(task, task_updates(adapters.stacks, index))
        for index, task in enumerate(adapters.names)
    }


def taught(
    base: Base,
    adapters: Adapters,
    heads: Mapping[str, Any],
    unlabeled: Unlabeled,
    **how: Any,
) -> Unlabeled:
    """Every input with what the own adapter of its task says of it, as `Taught`.

    The arguments are those of `ask_teachers`.
    """
    found = ask_teachers(base, adapters, heads, unlabeled, **how)
    inputs = {task: Taught(unlabeled.inputs[task], own) for task, own in found.items()}
    return unlabeled._replace(inputs=inputs)


def tokens_kept(base: Base, adapters: Adapters, given: int | None = None) -> int | None:
    """How many tokens of each distribution are kept; None for hidden states.

    Args:
      base: the model.
      adapters: of it; if they change the head, hidden states do not tell all.
      given: the number that was asked for.

    Raises:
      Refusal: a number that is not one of its words, or a model without a vocabulary.
    """
    if base.vocabulary is None:
        if given is not None:
            raise Refusal(
                Option("teacher_top", str(given)), " is for causal language models"
            )
        return None
    words = jax.eval_shape(base.vocabulary, base.params).shape[0]
    if given is not None and not 1 <= given <= words:
        raise Refusal(
            Option("teacher_top", str(given)), f": expected 1 to {words}, all tokens"
        )
    return min(TOP, words) if given is None and LM_HEAD in adapters.stacks else given


def _of_tokens(
    base: Base, unlabeled: Unlabeled, batch: int, report: Report | None, **how: Any
) -> Ask:
    rows = base.vocabulary
    if rows is None:
        raise ValueError(f"{base.folder}: was not read as a causal language model")

    @jax.jit
    def said(params: Any, updates: Mapping[str, Update], inputs: Any) -> TopTokens:
        head, body = head_and_body(rows(params), updates, LM_HEAD)
        hidden = with_updates(base.apply, body)(params, inputs)
        return top_tokens(hidden, head, mask=counted_tokens(inputs), **how)

    def ask(task: str, updates: Mapping[str, Update]) -> TopTokens:
        run = partial(said, base.params, updates)
        told = None if report is None else partial(report, task)
        found = outputs_of(base, unlabeled.inputs[task], batch, run, report=told)
        if not np.isfinite(found.log_p).all():
            raise Refusal(
                f"{base.folder}: with the adapter of {task} the logits are not finite; "
                "look for weights that are far too large"
            )
        return found

    return ask
