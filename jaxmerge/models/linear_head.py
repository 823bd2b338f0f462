"""Classification heads, kept apart from the model whose features they read."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

TWO_LAYERS = ("dense", "out_proj")  # of RoBERTa's head


def head_from_hub(
    tensors: Mapping[str, Any],
    module: str,
    *,
    layers: Sequence[str] = (),
    dtype: Any = jnp.float32,
) -> dict[str, Any]:
    """Arranges the tensors of a Hugging Face head as `head_logits` takes them.

    Args:
      tensors: tensors by Hugging Face key, such as the saved modules of an adapter
        (``Adapters.heads``); others than those of ``module`` are ignored.
      module: name of the head: ``classifier`` in BERT, ``score`` in Llama.
      layers: names of its linear layers, `TWO_LAYERS` in RoBERTa; empty where the head
        is one itself.
      dtype: floating type of the head.

    Returns:
      ``{"kernel": [d, C]}`` and, where the layer has one, ``"bias": [C]``; such a dict
      for each of the ``layers``, by name, where there are some.

    Raises:
      ValueError: there is no such layer, or its weight is not a matrix [C, d].

    >>> import numpy as np
    >>> tensors = {"score.weight": np.ones((3, 2))}
    >>> head_from_hub(tensors, "score")["kernel"].shape
    (2, 3)
    """
    if layers:
        return {
            name: head_from_hub(tensors, f"{module}.{name}", dtype=dtype)
            for name in layers
        }
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


def head_logits(head: Mapping[str, Any], features: jax.Array) -> jax.Array:
    """Logits of a head: ``linear(x)``, or ``out_proj(tanh(dense(x)))``.

    Args:
      head: as `head_from_hub` gives it, of one layer ``x @ kernel + bias`` or of two.
      features: x, [..., d].

    Returns:
      [..., C], in the wider of the two dtypes.

    >>> one = {"kernel": jnp.array([[2.0]]), "bias": jnp.array([1.0])}
    >>> x = jnp.zeros((1, 1))
    >>> print(head_logits(one, x), head_logits({"dense": one, "out_proj": one}, x))
    [[1.]] [[2.5231884]]
    """
    if "kernel" in head:
        return _linear(head, features)
    first, second = (head[name] for name in TWO_LAYERS)
    return _linear(second, jnp.tanh(_linear(first, features)))


def _linear(head: Mapping[str, jax.Array], features: jax.Array) -> jax.Array:
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
