"""Objectives at the tokens of a language model, without the logits of all of them.

A head of V words makes V numbers of every token, often a hundred times as many as its
hidden state has. So hidden states [..., d] and the head [V, d] are what is given, and
logits are formed for ``chunk`` tokens at a time, in the backward pass too.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxmerge.doors import check_shapes
from jaxmerge.learning.objectives import masked_mean

CHUNK = 256  # tokens: 130 MB of float32 logits where V is 128,000


def token_divergence(
    teacher: jax.Array,
    student: jax.Array,
    head: jax.Array,
    *,
    temperature: ArrayLike = 1.0,
    mask: jax.Array | None = None,
    chunk: int = CHUNK,
) -> jax.Array:
    """Mean divergence of next-token predictions from those of a teacher, in nats.

    `jaxmerge.divergence` of the logits ``teacher @ head.T`` and ``student @ head.T``,
    whose values it has. No gradient reaches the teacher.

    Args:
      teacher: last hidden states [..., d].
      student: the same of the model that is taught.
      head: [V, d], of both.
      temperature: tau.
      mask: bool of the leading shape, True for tokens that count; all unless given.
      chunk: tokens whose logits are in memory at a time.

    Cost: ``2 V d`` multiplications a token that counts, ``5 V d`` with the gradient;
    memory of ``2 chunk V`` numbers.

    >>> same, other = jnp.array([[2.0, 0.0]]), jnp.array([[0.0, 0.0]])
    >>> print(token_divergence(same, same, jnp.eye(2)))
    0.0
    >>> print(token_divergence(same, other, jnp.eye(2)).round(4))
    0.3278
    """
    check_shapes(
        token_divergence,
        teacher=(teacher, "[..., d]"),
        student=(student, "[..., d]"),
        head=(head, "[V, d]"),
        mask=(mask, "[...]"),
    )

    def of_chunk(own: jax.Array, merged: jax.Array) -> jax.Array:
        log_p = log_probabilities(own, head, temperature)
        log_q = log_probabilities(merged, head, temperature)
        return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)

    known = lax.stop_gradient(teacher.astype(student.dtype))
    each = over_tokens(of_chunk, known, student, mask=mask, chunk=chunk)
    tau = jnp.asarray(temperature, each.dtype)
    return tau * tau * masked_mean(each, mask)


def token_entropy(
    hidden: jax.Array,
    head: jax.Array,
    *,
    mask: jax.Array | None = None,
    chunk: int = CHUNK,
) -> jax.Array:
    """Mean entropy of next-token predictions, in nats.

    Args:
      hidden: last hidden states [..., d].
      head: [V, d].
      mask: bool of the leading shape, True for tokens that count; all unless given.
      chunk: tokens whose logits are in memory at a time.

    >>> print(token_entropy(jnp.zeros((3, 2)), jnp.eye(2)).round(4))
    0.6931
    """
    check_shapes(
        token_entropy,
        hidden=(hidden, "[..., d]"),
        head=(head, "[V, d]"),
        mask=(mask, "[...]"),
    )

    def of_chunk(hidden: jax.Array) -> jax.Array:
        log_p = log_probabilities(hidden, head)
        return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)

    return masked_mean(over_tokens(of_chunk, hidden, mask=mask, chunk=chunk), mask)


def token_nats(
    hidden: jax.Array, ids: jax.Array, head: jax.Array, *, chunk: int = CHUNK
) -> tuple[jax.Array, jax.Array]:
    """How unlikely the next tokens are, and whether they are the likeliest ones.

    Args:
      hidden: last hidden states [..., d].
      ids: number of the token after each of them, [...]; below 0 where none counts.
      head: [V, d].
      chunk: tokens whose logits are in memory at a time.

    Returns:
      ``-log p`` of each token, 0 where none counts, and which tokens have the largest
      logit, True where none counts.

    >>> nats, first = token_nats(jnp.zeros((2, 3)), jnp.array([0, -1]), jnp.eye(3))
    >>> print(nats.round(4), first)
    [1.0986 0.    ] [ True  True]
    """
    rows = {"hidden": (hidden, "[..., d]"), "ids": (ids, "[...]")}
    check_shapes(token_nats, **rows, head=(head, "[V, d]"))

    def of_chunk(hidden: jax.Array, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        said = logits(hidden, head)
        own = jnp.take_along_axis(said, ids[:, None], axis=-1)[:, 0]
        nats = jax.nn.logsumexp(said, axis=-1) - own
        return nats, jnp.argmax(said, axis=-1) == ids

    counted = ids >= 0
    nats, likeliest = over_tokens(of_chunk, hidden, ids, mask=counted, chunk=chunk)
    return nats, likeliest | ~counted


def log_probabilities(
    hidden: jax.Array, head: jax.Array, temperature: ArrayLike = 1.0
) -> jax.Array:
    """``log softmax(hidden head^T / tau)`` [..., V], in float32 at least."""
    said = logits(hidden, head)
    return jax.nn.log_softmax(said / jnp.asarray(temperature, said.dtype))


def logits(hidden: jax.Array, head: jax.Array) -> jax.Array:
    """``hidden head^T`` [..., V], in float32 at least."""
    dtype = jnp.promote_types(hidden.dtype, head.dtype)
    sums = jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype
    factors = (hidden.astype(dtype), head.astype(dtype).T)
    return jnp.matmul(*factors, preferred_element_type=sums)


def over_tokens(
    function: Callable[..., Any],
    hidden: jax.Array,
    *others: jax.Array,
    mask: jax.Array | None,
    chunk: int = CHUNK,
) -> Any:
    """A function of single tokens, some tokens at a time.

    Those that count are brought together, so that chunks without any cost nothing.
    What a chunk computes is computed again in the backward pass, and never kept.

    Args:
      function: of c rows of every array, to arrays [c].
      hidden: [..., d].
      *others: arrays with the same leading shape.
      mask: which tokens count, bool of the leading shape; all unless given.
      chunk: tokens at a time, c.

    Returns:
      What the function gives, in the leading shape; zeros where a token does not count.
    """
    leading = hidden.shape[:-1]
    tokens = math.prod(leading)
    chunk = max(1, min(chunk, tokens))
    counted = jnp.ones(tokens, bool) if mask is None else mask.reshape(-1)
    order = jnp.argsort(~counted, stable=True)  # those that count come first
    padding = -tokens % chunk

    def in_chunks(x: jax.Array) -> jax.Array:
        rows = x.reshape(tokens, *x.shape[len(leading) :])[order]
        rows = jnp.pad(rows, [(0, padding)] + [(0, 0)] * (rows.ndim - 1))
        return rows.reshape(-1, chunk, *rows.shape[1:])

    def in_place(values: jax.Array) -> jax.Array:
        found = values.reshape(-1)[:tokens]
        return jnp.zeros_like(found).at[order].set(found).reshape(leading)

    def step(_: None, each: tuple[jax.Array, ...]) -> tuple[None, Any]:
        counted, *rows = each
        shapes = jax.eval_shape(function, *rows)

        def zeros(*rows: jax.Array) -> Any:
            return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        found = lax.cond(counted.any(), function, zeros, *rows)
        return None, jax.tree.map(
            lambda x: jnp.where(counted, x, jnp.zeros_like(x)), found
        )

    each = tuple(map(in_chunks, (counted, hidden, *others)))
    _, found = lax.scan(jax.checkpoint(step), None, each)
    return jax.tree.map(in_place, found)
