"""Means over tokens whose gradient is found in the same pass as their value.

Whoever keeps no logits for the backward pass forms them twice. But a mean over tokens
is one number, so the gradient of every token is known, up to a factor, when its logits
are there: it is taken then and kept, d numbers a token.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxmerge.learning.token_logits import CHUNK, Chunks, if_any, over_tokens

OfChunk = Callable[[jax.Array, Any, Any], jax.Array]  # see `mean_over_tokens`


def mean_over_tokens(
    function: OfChunk,
    hidden: jax.Array,
    known: Any,
    shared: Any,
    *,
    mask: jax.Array | None,
    chunk: int = CHUNK,
) -> jax.Array:
    """Mean of a function over the tokens that count; 0 where none does.

    Only reverse-mode derivatives of it exist, and none in ``known``. What is not
    differentiated in costs nothing.

    Args:
      function: ``(hidden [c, d], known of c tokens, shared) -> [c]``, no closure.
      hidden: [..., d].
      known: arrays with the same leading shape, in a pytree.
      shared: what all tokens share, a pytree of arrays.
      mask: which tokens count, bool of the leading shape; all unless given.
      chunk: tokens at a time, c.
    """
    counted = jnp.ones(hidden.shape[:-1], bool) if mask is None else mask
    total = _sum(function, chunk, hidden, shared, known, counted)
    return total / jnp.maximum(jnp.sum(counted, dtype=total.dtype), 1)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sum(
    function: OfChunk,
    chunk: int,
    hidden: jax.Array,
    shared: Any,
    known: Any,
    mask: jax.Array,
) -> jax.Array:
    each = over_tokens(
        lambda some, own: function(some, own, shared),
        *(hidden, known),
        mask=mask,
        chunk=chunk,
    )
    return jnp.sum(each)


def _with_gradient(
    function: OfChunk, chunk: int, hidden: Any, shared: Any, known: Any, mask: Any
) -> tuple[jax.Array, tuple[Any, Any]]:
    """The sum, and its derivatives in hidden states and in what is wanted of shared."""
    leaves, structure = jax.tree.flatten(shared)  # each with a mark of what is wanted
    values = [leaf.value for leaf in leaves]
    wanted = [i for i, leaf in enumerate(leaves) if leaf.perturbed]
    hidden, known, mask = jax.tree.map(lambda x: x.value, (hidden, known, mask))

    def value(some: jax.Array, chosen: Any, counted: jax.Array, own: Any) -> jax.Array:
        every = dict(enumerate(values)) | dict(zip(wanted, chosen, strict=True))
        found = function(some, own, structure.unflatten(every.values()))
        return jnp.sum(jnp.where(counted, found, 0))

    chosen = [values[i] for i in wanted]
    chunks = Chunks.of(hidden, mask, chunk)

    def step(sums: Any, each: tuple[Any, ...]) -> tuple[Any, jax.Array]:
        some, counted, own = each
        both = jax.value_and_grad(value, argnums=(0, 1))
        found = if_any(counted, both, some, chosen, counted, own)
        total, (change, onto) = found
        return jax.tree.map(jnp.add, sums, (total, onto)), change

    each = chunks.split(hidden), chunks.counted, jax.tree.map(chunks.split, known)
    shape = jax.eval_shape(value, each[0][0], chosen, *jax.tree.map(_first, each[1:]))
    start = jnp.zeros((), shape.dtype), jax.tree.map(jnp.zeros_like, chosen)
    (total, onto), change = lax.scan(step, start, each)
    found = dict(zip(wanted, onto, strict=True))
    spread = structure.unflatten([found.get(i) for i in range(len(leaves))])
    return total, (chunks.joined(change), spread)


def _first(x: jax.Array) -> jax.Array:
    return x[0]


def _scaled(
    function: OfChunk, chunk: int, kept: tuple[Any, Any], cotangent: Any
) -> tuple[Any, Any, None, None]:
    if isinstance(cotangent, SymbolicZero):
        return None, None, None, None
    change, spread = jax.tree.map(lambda x: (cotangent * x).astype(x.dtype), kept)
    return change, spread, None, None


_sum.defvjp(_with_gradient, _scaled, symbolic_zeros=True)
