"""Where a fit begins: the scale at which task arithmetic does best on the objective."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxmerge.learning.apply import merge, prepared
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
from jaxmerge.stats.moments import Statistics
from jaxmerge.types import AdapterStack, Learned

SCALES = (0.05, 0.07, 0.1, 0.14, 0.2, 0.28, 0.4, 0.56, 0.8, 1.1, 1.5)
REFINEMENTS = 2
_GLANCE = 4  # one of so many batches is enough to choose where to look
_CLOSE = 0.01  # of a bracket: nearer to the best scale a parabola tells nothing new

Tried = dict[float, float]


class Start(NamedTuple):
    """Coefficients to begin with.

    Attributes:
      scale: what all of them are.
      phis: module -> coefficients, as `jaxmerge.fit` takes them.
      tried: scale -> objective over all batches, in the order in which they were tried.
      glanced: scale -> objective over the first batches alone, of the scales from which
        the search set out.
    """

    scale: float
    phis: Phis
    tried: Tried
    glanced: Tried


def search_start(
    learned: Learned,
    tasks: Sequence[str],
    stacks: Mapping[str, AdapterStack],
    losses: Losses,
    batches: Iterable[Mapping[str, Any]],
    *,
    params: Any = None,
    stats: Mapping[str, Statistics] | None = None,
    scalarise: Scalarise = smooth_tchebycheff,
    preference: jax.Array | None = None,
    shared: bool = False,
    scales: Sequence[float] = SCALES,
    refinements: int = REFINEMENTS,
    report: Callable[[float, float], None] | None = None,
) -> Start:
    """Finds one number for all coefficients by the objective itself.

    All coefficients equal to c give c times task arithmetic, whatever the method. The
    first quarter of the batches tells at which of every second scale the objective is
    least. From there the search goes downhill over all scales and batches until both
    neighbours are worse, and then to where the parabola through these three is least.

    Args:
      learned: see `jaxmerge.fit`, and so ``tasks``, ``stacks``, ``losses``, ``params``,
        ``stats``, ``scalarise``, ``preference`` [T] and ``shared``.
      batches: dicts of task -> batch.
      scales: ascending numbers.
      refinements: parabolas at most, each through the three best scales by then.
      report: called with each scale that was tried and its objective.

    Returns:
      `Start`.

    Raises:
      ValueError: no batch, or an objective that is finite for no scale.

    Cost: for S scales and N batches mostly ``(S / 8 + 3 + refinements) N`` losses, 52
    by default with 8 batches, where every scale on every batch would be 88.

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
    bases = prepared(learned, stacks, stats)
    first = first_phis(learned, bases, shared=shared)
    seen = list(batches)
    if not seen:
        raise ValueError("search_start: no batch was given")
    run = scale_program(problem)

    def objective(scale: float, batch: Mapping[str, Any]) -> jax.Array:
        return run(jnp.float32(scale), first, bases, params, batch, preference)

    found = search_scale(objective, seen, scales, refinements, report)
    return found._replace(phis=equal_phis(first, found.scale))


def scale_program(problem: Problem) -> Callable[..., jax.Array]:
    """The objective where all coefficients are one number, as one program."""

    @jax.jit
    def objective(
        scale: jax.Array,
        phis: Phis,
        bases: Mapping[str, Any],
        params: Any,
        batch: Any,
        preference: jax.Array | None,
    ) -> jax.Array:
        updates = merge(problem.learned, equal_phis(phis, scale), bases)
        return scalarised(problem, problem.losses(params, updates, batch), preference)[
            0
        ]

    return objective


def search_scale(
    objective: Callable[[float, Any], Any],
    batches: Sequence[Any],
    scales: Sequence[float] = SCALES,
    refinements: int = REFINEMENTS,
    report: Callable[[float, float], None] | None = None,
) -> Start:
    """The search of `search_start` for any objective of a scale and a batch.

    Args:
      objective: gives a scalar.
      batches: see `search_start`, and so ``scales``, ``refinements`` and ``report``.

    Returns:
      `Start` without coefficients.

    Raises:
      ValueError: an objective that is finite for no scale.

    >>> found = search_scale(lambda scale, best: (scale - best) ** 2, [0.3, 0.4])
    >>> print(f"{found.scale:.3f}")
    0.350
    """

    def mean(scale: float, some: Sequence[Any]) -> float:
        value = float(np.mean([float(objective(scale, batch)) for batch in some]))
        if report is not None:
            report(scale, value)
        return value

    tried: Tried = {}

    def value(scale: float) -> float:
        if scale not in tried:
            tried[scale] = mean(scale, batches)
        return tried[scale] if math.isfinite(tried[scale]) else math.inf

    few = batches[: max(1, len(batches) // _GLANCE)]
    glanced = {scale: mean(scale, few) for scale in (*scales[:-1:2], scales[-1])}
    _downhill(
        lambda index: value(scales[index]), scales.index(_least(glanced)), len(scales)
    )
    for _ in range(refinements):
        scale = _refined(tried)
        if scale is None:
            break
        value(scale)
    return Start(_least(tried), {}, tried, glanced)


def equal_phis(phis: Phis, scale: ArrayLike) -> Phis:
    """Coefficients of the same shapes that all are one number."""
    return jax.tree.map(lambda phi: jnp.full_like(phi, scale), phis)


def _downhill(value: Callable[[int], float], index: int, count: int) -> None:
    """From neighbour to neighbour until none is better."""
    best = None
    while best != index:
        best = index
        beside = range(max(best - 1, 0), min(best + 2, count))
        index = min((best, *beside), key=value)


def _least(tried: Tried) -> float:
    finite = {scale: value for scale, value in tried.items() if math.isfinite(value)}
    if not finite:
        raise ValueError(
            "search_start: the objective is finite for no scale; look for adapters or "
            "weights that are far too large"
        )
    return min(finite, key=finite.__getitem__)


def _refined(tried: Tried) -> float | None:
    """The next scale to try, between the neighbours of the best one."""
    best, known = _least(tried), sorted(tried)
    place = known.index(best)
    low, high = known[max(place - 1, 0)], known[min(place + 1, len(known) - 1)]
    if low < best < high and math.isfinite(tried[low] + tried[high]):
        left = (tried[best] - tried[low]) / (best - low)  # the slopes, both downhill
        right = (tried[high] - tried[best]) / (high - best)
        flat = left == right
        share = 0.5 if flat else left / (left - right)
        scale = (low + best + share * (high - low)) / 2
    else:
        low, high = max((low, best), (best, high), key=lambda gap: gap[1] - gap[0])
        scale = (low + high) / 2
    return None if abs(scale - best) <= _CLOSE * (high - low) else scale
