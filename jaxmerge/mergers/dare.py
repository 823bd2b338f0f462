"""Random dropping of entries before a rule: DARE and DELLA."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxmerge.doors import check_matrices, check_shapes
from jaxmerge.mergers.trim import check_density, density_of
from jaxmerge.types import RealLike, Rule


def dare(rule: Rule, *, density: RealLike | None) -> Rule:
    """Drops entries at random and rescales the others: ``M * mask / density``.

    Every entry of every task is kept with probability ``density``, so the mean over
    keys is the matrix itself.

    Args:
      rule: what merges the thinned matrices: `total` for DARE, `elect` or
        `trim(elect)` for DARE-TIES.
      density: share of the entries to keep, in (0, 1]; the paper and KnOTS give the
        share to drop. May be traced. None where each task has its own: ``densities``
        [T], given in the call.

    Returns:
      A rule that needs ``key``; it passes a fresh key on to ``rule``.

    Raises:
      ValueError: a density outside (0, 1], unless it is traced.

    Source: arXiv 2311.03099. Deviation: the official codes draw from a global
    generator; here the draw depends on the key alone.
    """
    if density is not None:
        check_density(density)

    def merge(
        matrices: jax.Array,
        *,
        key: jax.Array,
        densities: jax.Array | None = None,
        **extra: Any,
    ) -> jax.Array:
        check_matrices(rule, matrices)
        here, rest = jax.random.split(key)
        kept = jnp.asarray(density_of(dare, density, densities), matrices.dtype)
        kept = kept[:, None, None] if kept.ndim else kept
        return rule(_thin(matrices, kept, here), key=rest, **extra)

    return merge


def della(rule: Rule, *, density: RealLike | None, epsilon: float = 0.05) -> Rule:
    """Drops small entries with a higher probability (MagPrune of DELLA).

    Within each row the i-th smallest of q magnitudes is kept with probability
    ``density - epsilon + 2 epsilon (i - 1) / (q - 1)`` and divided by it.

    Args:
      rule: what merges the thinned matrices.
      density: mean share of the entries to keep; may be traced. None where each task
        has its own: ``densities`` [T], given in the call.
      epsilon: half the width of the range of probabilities.

    Returns:
      A rule that needs ``key``; it passes a fresh key on to ``rule``.

    Raises:
      ValueError: ``density - epsilon`` or ``density + epsilon`` outside (0, 1], unless
        the density is traced.

    Source: arXiv 2406.11617. Deviations: probabilities outside (0, 1] are refused
    (the official code only warns); a row of one entry is kept with ``density``.
    """
    if not (density is None or isinstance(density, Tracer)) and not (
        0 < density - epsilon <= density + epsilon <= 1
    ):
        raise ValueError(
            f"della: density {density} and epsilon {epsilon} give probabilities "
            "outside (0, 1]; choose epsilon below density and at most 1 - density"
        )

    def merge(
        matrices: jax.Array,
        *,
        key: jax.Array,
        densities: jax.Array | None = None,
        **extra: Any,
    ) -> jax.Array:
        check_matrices(rule, matrices)
        here, rest = jax.random.split(key)
        mean = jnp.asarray(density_of(della, density, densities), matrices.dtype)
        mean = mean[:, None, None] if mean.ndim else mean
        kept = della_probabilities(matrices, density=mean, epsilon=epsilon)
        return rule(_thin(matrices, kept, here), key=rest, **extra)

    return merge


def della_probabilities(
    matrices: jax.Array, *, density: RealLike, epsilon: float
) -> jax.Array:
    """Probability with which `della` keeps each entry: [..., p, q] -> [..., p, q].

    >>> row = jnp.array([[3.0, -1.0, 2.0]])
    >>> print(della_probabilities(row, density=0.5, epsilon=0.25))
    [[0.75 0.25 0.5 ]]
    """
    check_shapes(della_probabilities, matrices=(matrices, "[..., p, q]"))
    columns = matrices.shape[-1]
    density = jnp.asarray(density, matrices.dtype)
    if columns == 1:
        return jnp.broadcast_to(density, matrices.shape)
    order = jnp.argsort(jnp.argsort(jnp.abs(matrices), axis=-1), axis=-1)
    position = order.astype(matrices.dtype) / (columns - 1)
    return density - epsilon + 2 * epsilon * position


def _thin(matrices: jax.Array, probability: jax.Array, key: jax.Array) -> jax.Array:
    keys = jax.vmap(lambda t: jax.random.fold_in(key, t))(jnp.arange(matrices.shape[0]))
    uniform = jax.vmap(
        lambda k: jax.random.uniform(k, matrices.shape[1:], matrices.dtype)
    )(keys)
    dropped = (uniform >= probability) & jnp.isfinite(matrices)  # NaN stays visible
    return jnp.where(dropped, 0, matrices / probability)
