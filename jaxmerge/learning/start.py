"""Where a fit begins: the scale at which task arithmetic does best on the objective."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxmerge.learning.apply import merge
from jaxmerge.learning.objectives import smooth_tchebycheff
from jaxmerge.learning.step import (
    Losses,
    Phis,
    Problem,
    Scalarise,
    check_preference,
    check_tasks,
    first_phis,
    scalarised,
)
from jaxmerge.mapping import map_modules
from jaxmerge.types import AdapterStack, Learned

SCALES = (0.05, 0.07, 0.1, 0.14, 0.2, 0.28, 0.4, 0.56, 0.8, 1.1, 1.5)
_GOLDEN = (5**0.5 - 1) / 2


class Start(NamedTuple):
    """Coefficients to begin with.

    Attributes:
      scale: what all of them are.
      phis: module -> coefficients, as `jaxmerge.fit` takes them.
      tried: scale -> objective, in the order in which they were tried.
    """

    scale: float
    phis: Phis
    tried: dict[float, float]


def search_start(
    learned: Learned,
    tasks: Sequence[str],
    stacks: Mapping[str, AdapterStack],
    losses: Losses,
    batches: Iterable[Mapping[str, Any]],
    *,
    params: Any = None,
    scalarise: Scalarise = smooth_tchebycheff,
    preference: jax.Array | None = None,
    shared: bool = False,
    scales: Sequence[float] = SCALES,
    refinements: int = 4,
) -> Start:
    """Finds one number for all coefficients by the objective itself.

    All coefficients equal to c give c times task arithmetic, whatever the method. The
    objective, a mean over the given batches, is computed for a few scales, and then by
    golden section between the neighbours of the best one.

    Args:
      learned: see `jaxmerge.fit`, and so ``tasks``, ``stacks``, ``losses``, ``params``,
        ``scalarise``, ``preference`` [T] and ``shared``.
      batches: dicts of task -> batch; each scale sees all of them.
      scales: ascending numbers.
      refinements: steps of golden section.

    Returns:
      `Start`.

    Raises:
      ValueError: no batch, or an objective that is finite for no scale.

    >>> import itertools
    >>> from jaxmerge.learning.coefficients import tara_a
    >>> from jaxmerge.stacks import stack_adapters
    >>> from jaxmerge.updates import dense
    >>> stacks = {"w": stack_adapters([([[1.0]], [[2.0]])])}
    >>> def losses(params, updates, batch):
    ...     return {t: (dense(updates["w"])[0, 0] - y) ** 2 for t, y in batch.items()}
    >>> batches = [{"one": np.float32(0.8)}]
    >>> start = search_start(tara_a(), ("one",), stacks, losses, batches)
    >>> print(round(start.scale, 2))
    0.4
    """
    check_tasks(tasks, stacks)
    check_preference(tasks, preference)
    problem = Problem(learned, tuple(tasks), losses, scalarise)
    bases = map_modules(learned.prepare, stacks)
    first = first_phis(learned, bases, shared=shared)
    seen = list(batches)
    if not seen:
        raise ValueError("search_start: no batch was given")

    @jax.jit
    def objective(
        scale: jax.Array, bases: Mapping[str, Any], params: Any, batch: Any
    ) -> jax.Array:
        phis = equal_phis(first, scale)
        found = losses(params, merge(learned, phis, bases), batch)
        return scalarised(problem, found, preference)[0]

    tried: dict[float, float] = {}

    def try_scale(scale: float) -> float:
        given = (jnp.float32(scale), bases, params)
        values = [float(objective(*given, batch)) for batch in seen]
        tried[scale] = float(np.mean(values))
        return tried[scale] if np.isfinite(tried[scale]) else np.inf

    found = [try_scale(scale) for scale in scales]
    best = int(np.argmin(found))
    if not np.isfinite(found[best]):
        raise ValueError(
            "search_start: the objective is finite for no scale; look for adapters or "
            "weights that are far too large"
        )
    low, high = scales[max(best - 1, 0)], scales[min(best + 1, len(scales) - 1)]
    for _ in range(refinements if low < high else 0):
        one, two = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        if try_scale(one) <= try_scale(two):
            high = two
        else:
            low = one
    finite = {scale: value for scale, value in tried.items() if np.isfinite(value)}
    scale = min(finite, key=finite.__getitem__)
    return Start(scale, equal_phis(first, scale), tried)


def equal_phis(phis: Phis, scale: ArrayLike) -> Phis:
    """Coefficients of the same shapes that all are one number."""
    return jax.tree.map(lambda phi: jnp.full_like(phi, scale), phis)
