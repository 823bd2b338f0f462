"""The logits of a language model, some tokens at a time, and its head.

A head of V words makes V numbers of every token, often a hundred times as many as its
hidden state has. So hidden states [..., d] and the head [V, d] are what is given, and
logits are formed for ``chunk`` tokens at a time, in the backward pass too.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxmerge.doors import check_update
from jaxmerge.refusals import Refusal
from jaxmerge.types import LowRank, Update

CHUNK = 256  # tokens: 130 MB of float32 logits where V is 128,000


class AdaptedHead(NamedTuple):
    """A head with an update: its logits are ``h rows^T + (h a^T) b^T``.

    Attributes:
      rows: [V, d].
      update: [V, d], low rank or dense.
    """

    rows: jax.Array
    update: Update


Head = jax.Array | AdaptedHead


def head_and_body(
    rows: jax.Array, updates: Mapping[str, Update], name: str | None
) -> tuple[Head, Mapping[str, Update]]:
    """The head of a merged model, and the updates of its other modules.

    Args:
      rows: of the head without updates, [V, d].
      updates: module -> merged update.
      name: of the head among them, if it has one there.
    """
    if name is None or name not in updates:
        return rows, updates
    update = updates[name]
    check_update(head_and_body, update)
    left, right = update if isinstance(update, LowRank) else (update, update)
    if (left.shape[0], right.shape[1]) != rows.shape:
        found = left.shape[0], right.shape[1]
        raise Refusal(f"{name}: the head is {rows.shape}, its update {found}")
    body = {module: other for module, other in updates.items() if module != name}
    return AdaptedHead(rows, update), body


def rows_of(head: Head) -> jax.Array:
    """The rows [V, d] of a head without its update."""
    return head.rows if isinstance(head, AdaptedHead) else head


def logits(hidden: jax.Array, head: Head) -> jax.Array:
    """``hidden head^T`` [..., V], in float32 at least."""
    if isinstance(head, AdaptedHead):
        inner, outer = hidden, head.update
        if isinstance(outer, LowRank):
            inner, outer = logits(hidden, outer.a), outer.b
        return logits(hidden, head.rows) + logits(inner, outer)
    dtype = jnp.promote_types(hidden.dtype, head.dtype)
    sums = jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype
    factors = (hidden.astype(dtype), head.astype(dtype).T)
    return jnp.matmul(*factors, preferred_element_type=sums)


def log_probabilities(
    hidden: jax.Array, head: Head, temperature: ArrayLike = 1.0
) -> jax.Array:
    """``log softmax(hidden head^T / tau)`` [..., V], in float32 at least."""
    said = logits(hidden, head)
    return jax.nn.log_softmax(said / jnp.asarray(temperature, said.dtype))


def over_tokens(
    function: Callable[..., Any],
    hidden: jax.Array,
    *others: Any,
    mask: jax.Array | None,
    chunk: int = CHUNK,
) -> Any:
    """A function of single tokens, some tokens at a time.

    Those that count are brought together, so that chunks without any cost nothing.
    What a chunk computes is computed again in the backward pass, and never kept.

    Args:
      function: of c rows of every array, to arrays [c, ...].
      hidden: [..., d].
      *others: arrays with the same leading shape, or pytrees of such.
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
        found = values.reshape(-1, *values.shape[2:])[:tokens]
        whole = jnp.zeros_like(found).at[order].set(found)
        return whole.reshape(*leading, *found.shape[1:])

    def step(_: None, each: tuple[Any, ...]) -> tuple[None, Any]:
        counted, *rows = each
        shapes = jax.eval_shape(function, *rows)

        def zeros(*rows: Any) -> Any:
            return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        def those_that_count(x: jax.Array) -> jax.Array:
            keep = counted.reshape(-1, *[1] * (x.ndim - 1))
            return jnp.where(keep, x, jnp.zeros_like(x))

        found = lax.cond(counted.any(), function, zeros, *rows)
        return None, jax.tree.map(those_that_count, found)

    each = jax.tree.map(in_chunks, (counted, hidden, *others))
    _, found = lax.scan(jax.checkpoint(step), None, each)
    return jax.tree.map(in_place, found)
