"""Batches of texts, as every text model here takes them."""

from collections.abc import Collection, Mapping

import jax
import jax.numpy as jnp

Inputs = Mapping[str, jax.Array]


def read_inputs(
    inputs: Inputs, *, optional: Collection[str] = ()
) -> tuple[jax.Array, jax.Array]:
    """Token ids, and where they are not padding.

    Args:
      inputs: ``input_ids`` and ``attention_mask`` (0 marks padding), integers [B, S].
      optional: names of other arrays [B, S] that the model understands.

    Returns:
      Ids [B, S] and visibility [B, S] in bool.

    Raises:
      ValueError: names that are missing or unknown, or unequal shapes.
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
    return jnp.asarray(inputs["input_ids"]), jnp.asarray(inputs["attention_mask"]) != 0
