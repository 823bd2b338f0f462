"""Rotary position embeddings, with the long-context scaling of Llama 3.1 and later.

Letters: B texts, S tokens, N heads, D features of one head.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """How Llama 3.1 stretches slow rotations, named as in ``config.json``.

    A rotation that turns less than ``low_freq_factor`` times within
    ``original_max_position_embeddings`` tokens is slowed by ``factor``, one that turns
    more than ``high_freq_factor`` times is left alone, and between the two it goes over
    linearly in the number of turns.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


def frequencies(
    size: int, *, theta: float, scaling: Llama3Scaling | None = None
) -> np.ndarray:
    """Radians per token of each pair of features: ``theta ** (-2 i / D)``, scaled.

    Args:
      size: D, even.
      theta: base of the geometric series.
      scaling: None leaves the series as it is.

    Returns:
      [D / 2] in float32.

    >>> frequencies(4, theta=100.0).tolist()
    [1.0, 0.10000000149011612]
    """
    plain = theta ** -(np.arange(0, size, 2, dtype=np.float64) / size)
    if scaling is None:
        return plain.astype(np.float32)
    turns = scaling.original_max_position_embeddings * plain / (2 * np.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return (plain * (kept + (1 - kept) / scaling.factor)).astype(np.float32)


def rotate(x: jax.Array, radians: jax.Array) -> jax.Array:
    """Rotates features i and i + D/2 of every token by its angle, in float32.

    Args:
      x: [B, S, N, D].
      radians: [S, D / 2].

    Returns:
      [B, S, N, D] in the dtype of x.
    """
    cosine, sine = (f(radians)[None, :, None, :] for f in (jnp.cos, jnp.sin))
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (first * cosine - second * sine, second * cosine + first * sine)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
