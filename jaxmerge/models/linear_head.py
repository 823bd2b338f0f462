"""Classification heads, kept apart from the model whose features they read."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp


def head_from_hub(
    tensors: Mapping[str, Any], module: str, *, dtype: Any = jnp.float32
) -> dict[str, jax.Array]:
    """Arranges the tensors of a Hugging Face linear layer as a head.

    Args:
      tensors: tensors by Hugging Face key, such as the saved modules of an adapter
        (``Adapters.heads``); others than those of ``module`` are ignored.
      module: name of the layer: ``classifier`` in BERT, ``score`` in Llama.
      dtype: floating type of the head.

    Returns:
      ``{"kernel": [d, C]}`` and, where the layer has one, ``"bias": [C]``.

    Raises:
      ValueError: there is no such layer, or its weight is not a matrix [C, d].

    >>> import numpy as np
    >>> tensors = {"score.weight": np.ones((3, 2))}
    >>> head_from_hub(tensors, "score")["kernel"].shape
    (2, 3)
    """
    key = f"{module}.weight"
    if key not in tensors:
        known = ", ".join(sorted(tensors)) or "none"
        raise ValueError(f"no head {key!r} among the tensors: {known}")
    weight = jnp.asarray(tensors[key], dtype)
    if weight.ndim != 2:
        raise ValueError(f"{key} {weight.shape} is not a matrix [classes, features]")
    head = {"kernel": weight.T}
    if f"{module}.bias" in tensors:
        head["bias"] = jnp.asarray(tensors[f"{module}.bias"], dtype)
    return head


def head_logits(head: Mapping[str, jax.Array], features: jax.Array) -> jax.Array:
    """Logits of a linear head: ``features @ kernel + bias``.

    Args:
      head: ``kernel`` [d, C] and, optionally, ``bias`` [C].
      features: [..., d].

    Returns:
      [..., C], in the wider of the two dtypes.
    """
    kernel = head["kernel"]
    dtype = jnp.promote_types(kernel.dtype, features.dtype)
    logits = jnp.matmul(features.astype(dtype), kernel.astype(dtype))
    if "bias" not in head:
        return logits
    bias = jnp.broadcast_to(head["bias"].astype(dtype), logits.shape)
    return logits + bias


def cosines(vectors: jax.Array, features: jax.Array) -> jax.Array:
    """Cosine similarity of features [B, d] with the vectors of classes [C, d]: [B, C].

    >>> print(cosines(jnp.array([[2.0, 0.0], [0.0, 5.0]]), jnp.array([[3.0, 4.0]])))
    [[0.6 0.8]]
    """
    return jnp.matmul(_unit(features.astype(vectors.dtype)), _unit(vectors).T)


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
