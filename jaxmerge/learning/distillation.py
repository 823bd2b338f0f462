"""Losses in which every adapter teaches the merge, without labels.

The teacher of task t is the base with adapter t alone; the student is the merged model,
on the same inputs. A merge that equals the teacher has loss 0, which is the ideal value
of the task: the anchors of `jaxmerge.smooth_tchebycheff` are 0. No class can be named
for all inputs at a low loss, and no scale of the logits makes the loss small.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxmerge.learning.objectives import cosine_distance, divergence
from jaxmerge.learning.predictions import Logits, task_features
from jaxmerge.learning.step import Losses, Updates, batches_by_task, check_tasks
from jaxmerge.learning.token_logits import CHUNK, AdaptedHead, Head, head_and_body
from jaxmerge.learning.token_objectives import token_divergence
from jaxmerge.learning.top_tokens import TOP, TopTokens, top_tokens
from jaxmerge.models.adapt import Apply, with_updates
from jaxmerge.refusals import Refusal
from jaxmerge.stacks import task_updates
from jaxmerge.types import AdapterStack

InputMask = Callable[[Any], jax.Array]  # of inputs, which of their answers count
Distance = Callable[..., jax.Array]  # (teacher, student, *, mask) -> scalar
Vocabulary = Callable[[Any], jax.Array]  # parameters -> [V, d], the head


class Taught(NamedTuple):
    """Inputs, and what the teacher of their task says of them."""

    inputs: Any  # a pytree of arrays [N, ...]
    answers: Any  # [N, ..., classes] logits, [N, ..., d] features, or `TopTokens`


def distillation(
    apply: Apply,
    logits: Logits,
    heads: Mapping[str, Any],
    *,
    teachers: Mapping[str, Updates] | None = None,
    logit_scale: ArrayLike = 1.0,
    temperature: ArrayLike = 1.0,
    mask: InputMask | None = None,
    merged: bool | None = None,
) -> Losses:
    """Divergence of the merged model's predictions from those of each own adapter.

    ``f_t = tau^2 mean KL(softmax(s z_t / tau) || softmax(s z / tau))`` over the inputs
    of task t, z_t being the logits of the teacher, z those of the merged model and s
    ``logit_scale``. A language model is the same case: its head is one for all tasks,
    its logits are [B, S, vocabulary], and ``mask`` says which tokens count; with less
    memory by `token_distillation`.

    Args:
      apply: pure function ``(params, inputs [B, ...]) -> features`` that runs a Flax
        model; not jitted.
      logits: ``(head, features) -> [B, ..., classes]``.
      heads: task -> its head.
      teachers: task -> updates of its own adapter (`jaxmerge.task_updates`), to ask the
        teacher anew in every step; the batches then hold inputs alone. Unless given,
        the batches are `Taught`: answers are computed once (`teacher_answers`).
      logit_scale: multiplies the logits of both, such as cosines.
      temperature: tau; a high one tells more of the unlikely classes.
      mask: which answers count, bool of the leading shape of the logits; all unless
        given.
      merged: see `jaxmerge.models.with_updates`; by default the faster of the two.

    Returns:
      A function as `jaxmerge.fit` takes it.

    Source: SAMerging (arXiv 2512.21288) distils full fine-tunes so; here the
    coefficients are those of any learned merge of adapters.

    >>> apply, logits = (lambda params, x: x), (lambda head, x: x @ head)
    >>> losses = distillation(apply, logits, {"same": jnp.eye(2), "turned": jnp.eye(2)})
    >>> x = jnp.array([[1.0, 0.0]])
    >>> batch = {"same": Taught(x, x), "turned": Taught(x, x[:, ::-1])}
    >>> found = losses(None, {}, batch)
    >>> {task: f"{value:.3f}" for task, value in found.items()}
    {'same': '0.000', 'turned': '0.462'}
    """

    def distance(
        teacher: jax.Array, student: jax.Array, *, mask: jax.Array | None
    ) -> jax.Array:
        scaled = (
            x * jnp.asarray(logit_scale, x.dtype)
            for x in (teacher.astype(student.dtype), student)
        )
        return divergence(*scaled, temperature=temperature, mask=mask)

    def answer(task: str, features: Any) -> jax.Array:
        return logits(heads[task], features)

    return _taught_losses(apply, answer, distance, teachers, mask, merged)


def token_distillation(
    apply: Apply,
    vocabulary: Vocabulary,
    *,
    head: str | None = None,
    top: int = TOP,
    teachers: Mapping[str, Updates] | None = None,
    temperature: ArrayLike = 1.0,
    mask: InputMask | None = None,
    merged: bool | None = None,
    chunk: int = CHUNK,
) -> Losses:
    """`distillation` of causal language models, which have one head E for all tasks.

    ``f_t = tau^2 mean KL(softmax(E h_t / tau) || softmax(E h / tau))`` over the tokens
    of task t that count, h_t and h being the last hidden states of teacher and merge.
    The answers of `Taught` are hidden states: d numbers a token in the place of a
    distribution over V words, from which it follows exactly. There are no heads.

    Where adapters change the head, E is that of the merge and each teacher has another;
    then the answers are `TopTokens`, made at this temperature by `top_tokens`.

    Args:
      apply: pure function ``(params, inputs [B, ...]) -> hidden states [B, ..., d]``
        that runs a Flax model; not jitted.
      vocabulary: ``params -> E [V, d]``. The head is an argument of the compiled
        program, as the parameters are, and never a constant in it.
      head: name of the head among the updates, where adapters change it.
      top: tokens that are kept of what ``teachers`` say, if the head is changed.
      teachers: see `distillation`.
      temperature: tau.
      mask: which tokens count, bool of the leading shape of the hidden states.
      merged: see `distillation`.
      chunk: tokens whose logits are in memory at a time, see `token_divergence`.

    Returns:
      A function as `jaxmerge.fit` takes it.

    >>> apply, vocabulary = (lambda params, x: x), (lambda params: params)
    >>> losses = token_distillation(apply, vocabulary)
    >>> x = jnp.array([[[1.0, 0.0], [0.0, 0.0]]])
    >>> batch = {"same": Taught(x, x), "turned": Taught(x, x[..., ::-1])}
    >>> found = losses(jnp.eye(2), {}, batch)
    >>> {task: f"{value:.3f}" for task, value in found.items()}
    {'same': '0.000', 'turned': '0.231'}
    """

    def losses(
        params: Any, updates: Updates, batch: Mapping[str, Any]
    ) -> Mapping[str, jax.Array]:
        rows = vocabulary(params)
        of_merge, body = head_and_body(rows, updates, head)
        how: dict[str, Any] = {"temperature": temperature, "chunk": chunk}

        def compare(
            teacher: Any, student: jax.Array, *, mask: jax.Array | None
        ) -> jax.Array:
            _check_teacher(teacher, of_merge)
            return token_divergence(teacher, student, of_merge, mask=mask, **how)

        def said(own: Updates, inputs: Any) -> TopTokens:
            of_own, body = head_and_body(rows, own, head)
            hidden = with_updates(apply, body)(params, inputs)
            return top_tokens(hidden, of_own, k=top, **how)

        asked, given = teachers, batch
        if teachers and any(head in x for x in (updates, *teachers.values())):
            asked = None
            given = {t: Taught(x, said(teachers[t], x)) for t, x in batch.items()}
        of_body = _taught_losses(apply, _features, compare, asked, mask, merged)
        return of_body(params, body, given)

    return losses


def feature_distillation(
    apply: Apply,
    *,
    distance: Distance = cosine_distance,
    teachers: Mapping[str, Updates] | None = None,
    mask: InputMask | None = None,
    merged: bool | None = None,
) -> Losses:
    """Distance of the merged model's features from those of each own adapter.

    For models without heads or classes; the answers of `Taught` are features.

    Args:
      apply: pure function ``(params, inputs [B, ...]) -> features [B, ..., d]``.
      distance: ``(teacher, student, *, mask) -> scalar``, `cosine_distance` or
        `squared_distance`.
      teachers: see `distillation`.
      mask: see `distillation`.
      merged: see `distillation`.
    """
    return _taught_losses(apply, _features, distance, teachers, mask, merged)


def teacher_answers(
    apply: Apply,
    tasks: Sequence[str],
    stacks: Mapping[str, AdapterStack],
    batches: Iterable[Mapping[str, Any]],
    *,
    logits: Logits | None = None,
    heads: Mapping[str, Any] | None = None,
    params: Any = None,
) -> dict[str, np.ndarray]:
    """What each own adapter says of its inputs, to be kept beside them.

    Args:
      apply: pure function ``(params, inputs) -> features`` that runs a Flax model.
      tasks: names of the adapters, in the order of the stacks.
      stacks: module -> adapters.
      batches: dicts of task -> inputs; each input once.
      logits: ``(head, features) -> [B, ..., classes]``; without it the answers are the
        features.
      heads: task -> its head, for ``logits``.
      params: of the model.

    Returns:
      task -> answers [N, ...], in the order of the batches.

    Raises:
      ValueError: a stack of another number of adapters, or a task without a batch.
    """
    check_tasks(tasks, stacks)

    @jax.jit
    def features_of(params: Any, updates: Updates, inputs: Any) -> Any:
        return with_updates(apply, updates)(params, inputs)

    answers = {}
    for index, (task, own) in enumerate(batches_by_task(tasks, batches).items()):
        updates = task_updates(stacks, index)
        found = [features_of(params, updates, inputs) for inputs in own]
        if logits is not None and heads is not None:
            found = [logits(heads[task], features) for features in found]
        answers[task] = np.concatenate([np.asarray(x) for x in found])
    return answers


def _check_taught(batch: Mapping[str, Any]) -> None:
    for task, taught in batch.items():
        if not isinstance(taught, Taught):
            raise Refusal(
                f"the batch of {task!r} is a {type(taught).__name__}; expected "
                "jaxmerge.Taught, inputs with the answers of their teacher, or teachers"
            )


def _features(task: str, features: jax.Array) -> jax.Array:
    return features


def _check_teacher(teacher: Any, head: Head) -> None:
    """Refuses hidden states of teachers whose heads they do not tell."""
    if isinstance(head, AdaptedHead) and not isinstance(teacher, TopTokens):
        raise Refusal(
            "token_distillation: the adapters change the head, so the hidden states of "
            "a teacher do not tell what it says; give jaxmerge.top_tokens as answers, "
            "or teachers"
        )


def _taught_losses(
    apply: Apply,
    answer: Callable[[str, Any], jax.Array],
    compare: Distance,
    teachers: Mapping[str, Updates] | None,
    mask: InputMask | None,
    merged: bool | None,
) -> Losses:
    def losses(
        params: Any, updates: Updates, batch: Mapping[str, Any]
    ) -> dict[str, jax.Array]:
        if teachers is None:
            _check_taught(batch)
            inputs = {task: taught.inputs for task, taught in batch.items()}
            known = {task: taught.answers for task, taught in batch.items()}
        else:
            inputs = dict(batch)
            known = {
                task: answer(task, with_updates(apply, teachers[task])(params, own))
                for task, own in inputs.items()
            }
        found = {}
        for task, features in task_features(
            apply, params, updates, inputs, merged=merged
        ):
            found[task] = compare(
                jax.lax.stop_gradient(jax.tree.map(jnp.asarray, known[task])),
                answer(task, features),
                mask=None if mask is None else mask(inputs[task]),
            )
        return found

    return losses
