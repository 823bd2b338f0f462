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
    chunks = Chunks.of(hidden, mask, chunk)

    def step(_: None, each: tuple[Any, ...]) -> tuple[None, Any]:
        counted, *rows = each

        def those_that_count(x: jax.Array) -> jax.Array:
            keep = counted.reshape(-1, *[1] * (x.ndim - 1))
            return jnp.where(keep, x, jnp.zeros_like(x))

        found = if_any(counted, function, *rows)
        return None, jax.tree.map(those_that_count, found)

    each = chunks.counted, *jax.tree.map(chunks.split, (hidden, *others))
    _, found = lax.scan(jax.checkpoint(step), None, each)
    return jax.tree.map(chunks.joined, found)


class Chunks(NamedTuple):
    """Tokens brought into chunks, those that count first.

    Attributes:
      leading: shape of the tokens.
      order: of them, [N].
      counted: bool [chunks, c].
    """

    leading: tuple[int, ...]
    order: jax.Array
    counted: jax.Array

    @classmethod
    def of(cls, hidden: jax.Array, mask: jax.Array | None, chunk: int) -> "Chunks":
        """Chunks of hidden states [..., d], of which those in the mask count."""
        leading = hidden.shape[:-1]
        tokens = math.prod(leading)
        chunk = max(1, min(chunk, tokens))
        counts = jnp.ones(tokens, bool) if mask is None else mask.reshape(-1)
        order = jnp.argsort(~counts, stable=True)
        counted = jnp.pad(counts[order], (0, -tokens % chunk)).reshape(-1, chunk)
        return cls(leading, order, counted)

    def split(self, x: jax.Array) -> jax.Array:
        """Arrays of tokens [..., *inner] in chunks, [chunks, c, *inner]."""
        rows = x.reshape(-1, *x.shape[len(self.leading) :])[self.order]
        padding = self.counted.size - len(rows)
        rows = jnp.pad(rows, [(0, padding)] + [(0, 0)] * (rows.ndim - 1))
        return rows.reshape(*self.counted.shape, *rows.shape[1:])

    def joined(self, values: jax.Array) -> jax.Array:
        """The inverse of `split`."""
        found = values.reshape(-1, *values.shape[2:])[: len(self.order)]
        whole = jnp.zeros_like(found).at[self.order].set(found)
        return whole.reshape(*self.leading, *found.shape[1:])


def if_any(counted: jax.Array, function: Callable[..., Any], *rows: Any) -> Any:
    """What a function gives, zeros without calling it where nothing counts."""
    shapes = jax.eval_shape(function, *rows)

    def zeros(*rows: Any) -> Any:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    return lax.cond(counted.any(), function, zeros, *rows)
