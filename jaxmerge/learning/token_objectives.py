"""Objectives at the tokens of a language model, without the logits of all of them."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxmerge.doors import check_shapes
from jaxmerge.learning.token_logits import (
    CHUNK,
    Head,
    log_probabilities,
    logits,
    over_tokens,
    rows_of,
)
from jaxmerge.learning.token_mean import mean_over_tokens
from jaxmerge.learning.top_tokens import TopTokens, divergence_of_top


def token_divergence(
    teacher: jax.Array | TopTokens,
    student: jax.Array,
    head: Head,
    *,
    temperature: ArrayLike = 1.0,
    mask: jax.Array | None = None,
    chunk: int = CHUNK,
) -> jax.Array:
    """Mean divergence of next-token predictions from those of a teacher, in nats.

    `jaxmerge.divergence` of the logits ``teacher @ head.T`` and ``student @ head.T``,
    whose values it has. No gradient reaches the teacher, and only reverse-mode
    derivatives the student and the head. With the k likeliest tokens of
    a teacher it is the divergence over these and the rest of the words as one, which is
    never larger, and equal for k = V.

    Args:
      teacher: last hidden states [..., d], or `TopTokens` [..., k] at this temperature.
      student: last hidden states [..., d] of the model that is taught.
      head: [V, d], or `AdaptedHead`; of both where the teacher is hidden states.
      temperature: tau.
      mask: bool of the leading shape, True for tokens that count; all unless given.
      chunk: tokens whose logits are in memory at a time.

    Cost: ``2 V d`` multiplications a token that counts, ``3 V d`` with the gradient,
    which is found in the same pass; memory of ``2 chunk V`` numbers. With `TopTokens`
    ``V d`` and ``2 V d``.

    >>> same, other = jnp.array([[2.0, 0.0]]), jnp.array([[0.0, 0.0]])
    >>> print(token_divergence(same, same, jnp.eye(2)))
    0.0
    >>> print(token_divergence(same, other, jnp.eye(2)).round(4))
    0.3278
    """
    top = isinstance(teacher, TopTokens)
    check_shapes(
        token_divergence,
        student=(student, "[..., d]"),
        teacher=(teacher.ids if top else teacher, "[..., k]" if top else "[..., d]"),
        head=(rows_of(head), "[V, d]"),
        mask=(mask, "[...]"),
    )

    of_chunk = divergence_of_top if top else _divergence
    known, tau = lax.stop_gradient(teacher), jnp.asarray(temperature, _wide(student))
    how = {"mask": mask, "chunk": chunk}
    return tau * tau * mean_over_tokens(of_chunk, student, known, (head, tau), **how)


def _divergence(
    merged: jax.Array, own: jax.Array, shared: tuple[Head, jax.Array]
) -> jax.Array:
    head, tau = shared
    log_p = log_probabilities(own.astype(merged.dtype), lax.stop_gradient(head), tau)
    log_q = log_probabilities(merged, head, tau)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def _wide(x: jax.Array) -> Any:
    """A floating type of 32 bits at least."""
    return x.dtype if jnp.finfo(x.dtype).bits >= 32 else jnp.float32


def token_entropy(
    hidden: jax.Array,
    head: Head,
    *,
    mask: jax.Array | None = None,
    chunk: int = CHUNK,
) -> jax.Array:
    """Mean entropy of next-token predictions, in nats.

    Args:
      hidden: last hidden states [..., d].
      head: [V, d], or `AdaptedHead`.
      mask: bool of the leading shape, True for tokens that count; all unless given.
      chunk: tokens whose logits are in memory at a time.

    >>> print(token_entropy(jnp.zeros((3, 2)), jnp.eye(2)).round(4))
    0.6931
    """
    check_shapes(
        token_entropy,
        hidden=(hidden, "[..., d]"),
        head=(rows_of(head), "[V, d]"),
        mask=(mask, "[...]"),
    )

    return mean_over_tokens(_entropy, hidden, (), head, mask=mask, chunk=chunk)


def _entropy(hidden: jax.Array, known: tuple[()], head: Head) -> jax.Array:
    log_p = log_probabilities(hidden, head)
    return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def token_nats(
    hidden: jax.Array, ids: jax.Array, head: Head, *, chunk: int = CHUNK
) -> tuple[jax.Array, jax.Array]:
    """How unlikely the next tokens are, and whether they are the likeliest ones.

    Args:
      hidden: last hidden states [..., d].
      ids: number of the token after each of them, [...]; below 0 where none counts.
      head: [V, d], or `AdaptedHead`.
      chunk: tokens whose logits are in memory at a time.

    Returns:
      ``-log p`` of each token, 0 where none counts, and which tokens have the largest
      logit, True where none counts.

    >>> nats, first = token_nats(jnp.zeros((2, 3)), jnp.array([0, -1]), jnp.eye(3))
    >>> print(nats.round(4), first)
    [1.0986 0.    ] [ True  True]
    """
    rows = {"hidden": (hidden, "[..., d]"), "ids": (ids, "[...]")}
    check_shapes(token_nats, **rows, head=(rows_of(head), "[V, d]"))

    def of_chunk(hidden: jax.Array, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        said = logits(hidden, head)
        own = jnp.take_along_axis(said, ids[:, None], axis=-1)[:, 0]
        nats = jax.nn.logsumexp(said, axis=-1) - own
        return nats, jnp.argmax(said, axis=-1) == ids

    counted = ids >= 0
    nats, likeliest = over_tokens(of_chunk, hidden, ids, mask=counted, chunk=chunk)
    return nats, likeliest | ~counted
