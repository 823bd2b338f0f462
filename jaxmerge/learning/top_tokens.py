"""What a teacher says of the next token, in few numbers: its likeliest tokens.

Where the teacher has a head of its own, its hidden states do not tell what it says, and
V numbers a token are too many to keep.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxmerge.doors import check_shapes
from jaxmerge.learning.token_logits import CHUNK, Head, logits, over_tokens, rows_of
from jaxmerge.refusals import Refusal

TOP = 256  # of tokens that are kept: see docs/guide.md for the error of other numbers


class TopTokens(NamedTuple):
    """The k likeliest next tokens, and the probability of all others together.

    Attributes:
      ids: [..., k], int32, the likeliest first.
      log_p: [..., k], logarithms of their probabilities.
      log_rest: [...], of what is left; very low where nothing is.
    """

    ids: jax.Array
    log_p: jax.Array
    log_rest: jax.Array


def top_tokens(
    hidden: jax.Array,
    head: Head,
    *,
    k: int = TOP,
    temperature: ArrayLike = 1.0,
    mask: jax.Array | None = None,
    chunk: int = CHUNK,
) -> TopTokens:
    """The likeliest next tokens of a language model, to be kept as those of a teacher.

    Args:
      hidden: last hidden states [..., d].
      head: [V, d], or a `jaxmerge.AdaptedHead`.
      k: tokens that are kept, from 1 to V.
      temperature: tau, at which they are compared with others later on.
      mask: bool of the leading shape, True for tokens that count; all unless given.
      chunk: tokens whose logits are in memory at a time.

    >>> found = top_tokens(jnp.array([[2.0, 0.0, 0.0]]), jnp.eye(3), k=1)
    >>> log_p, log_rest = found.log_p, found.log_rest
    >>> print(found.ids, jnp.exp(log_p).round(3), jnp.exp(log_rest).round(3))
    [[0]] [[0.787]] [0.213]
    """
    rows = rows_of(head)
    check_shapes(
        top_tokens,
        hidden=(hidden, "[..., d]"),
        head=(rows, "[V, d]"),
        mask=(mask, "[...]"),
    )
    if not 1 <= k <= len(rows):
        raise Refusal(f"top_tokens: k = {k}, expected 1 to {len(rows)}, all words")

    def of_chunk(hidden: jax.Array) -> TopTokens:
        said = logits(hidden, head)
        said = said / jnp.asarray(temperature, said.dtype)
        _, ids = lax.top_k(said, k)
        return TopTokens(ids, *_at(said, ids))

    return over_tokens(of_chunk, hidden, mask=mask, chunk=chunk)


def divergence_of_top(
    student: jax.Array, teacher: TopTokens, shared: tuple[Head, jax.Array]
) -> jax.Array:
    """``sum_j p_j log(p_j / q_j)`` over k tokens and the rest of them, [c], in nats.

    Never more than the divergence over all V tokens, and equal to it for k = V.
    """
    head, tau = shared
    said = logits(student, head)
    log_q, log_others = _at(said / tau.astype(said.dtype), teacher.ids)
    log_p, log_rest = (x.astype(said.dtype) for x in teacher[1:])
    each = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
    return each + jnp.exp(log_rest) * (log_rest - log_others)


def _at(said: jax.Array, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log probabilities of some words [c, k], and of all others together [c]."""
    nothing = float(jnp.finfo(said.dtype).min) / 4  # finite: its gradient is no nan
    chosen = jnp.take_along_axis(said, ids, axis=-1)
    others = jnp.put_along_axis(said, ids, nothing, axis=-1, inplace=False)
    rest = jax.nn.logsumexp(others, axis=-1)
    total = jnp.logaddexp(jax.nn.logsumexp(chosen, axis=-1), rest)
    return chosen - total[:, None], rest - total
