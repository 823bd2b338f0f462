"""Batches of texts, as every text model here takes them."""

from collections.abc import Collection, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

Inputs = Mapping[str, jax.Array]


def read_inputs(
    inputs: Inputs, *, words: int, longest: int, optional: Collection[str] = ()
) -> tuple[jax.Array, jax.Array]:
    """Token ids, and where they are not padding.

    Args:
      inputs: ``input_ids`` and ``attention_mask`` (0 marks padding), integers [B, S].
      words: number of tokens that the model knows.
      longest: largest S that it reads.
      optional: names of other arrays [B, S] that the model understands.

    Returns:
      Ids [B, S] and visibility [B, S] in bool.

    Raises:
      ValueError: names that are missing or unknown, unequal shapes, too many tokens or,
        where ids are not traced, tokens that the model does not know: it would read
        others in their place.
    """
    needed = {"input_ids", "attention_mask"}
    if not needed <= set(inputs) <= needed | set(optional):
        raise ValueError(
            f"inputs {sorted(inputs)}, expected {sorted(needed)}"
            + (f" and optionally {sorted(optional)}" if optional else "")
        )
    shapes = {name: jnp.shape(value) for name, value in inputs.items()}
    if len(shapes["input_ids"]) != 2 or len(set(shapes.values())) > 1:
        raise ValueError(f"inputs {shapes}, expected one shape (batch, tokens)")
    length = shapes["input_ids"][1]
    if length > longest:
        raise ValueError(
            f"{length} tokens, the model has {longest} positions; truncate them"
        )
    _check_known(inputs["input_ids"], words)
    return jnp.asarray(inputs["input_ids"]), jnp.asarray(inputs["attention_mask"]) != 0


def _check_known(ids: jax.Array, words: int) -> None:
    if isinstance(ids, Tracer) or not np.size(ids):
        return
    known = np.asarray(ids)
    for token in (int(known.min()), int(known.max())):
        if not 0 <= token < words:
            raise ValueError(
                f"input_ids hold token {token}, the model knows 0 to {words - 1}; it "
                "belongs to another tokenizer"
            )
