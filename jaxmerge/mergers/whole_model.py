"""Merges of whole models: module by module, or with one threshold over all modules.

Every function here makes or surrounds a `jaxmerge.types.ModelMerger`.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import ArrayLike

from jaxmerge.doors import check_model
from jaxmerge.mapping import map_modules
from jaxmerge.mergers.passes import threshold_in_passes
from jaxmerge.mergers.spaces import merged_in
from jaxmerge.mergers.thresholds import magnitude_threshold
from jaxmerge.mergers.trim import (
    above,
    check_density,
    density_of,
    kept_count,
)
from jaxmerge.stacks import task_weights
from jaxmerge.stats.matching import check_statistics
from jaxmerge.stats.moments import Statistics
from jaxmerge.streamed import Streamed
from jaxmerge.types import (
    AdapterStack,
    Calibration,
    Merger,
    ModelMerger,
    RealLike,
    Rule,
    Space,
    Update,
)
from jaxmerge.updates import calibrated

Stacks = Mapping[str, AdapterStack]

# A program is found again by the function that it was compiled from, so these are kept.
_kept_functions = lru_cache(maxsize=64)


@_kept_functions
def each_module(merger: Merger) -> ModelMerger:
    """A merger applied to every module by itself, with its own statistics.

    Args:
      merger: build it once: a new closure or ``partial`` compiles again.

    Returns:
      ModelMerger. It takes the options of `jaxmerge.map_modules`; ``stats`` are
      module -> statistics of all tasks, stacked (`jaxmerge.stack_moments`).

    >>> from jaxmerge.mergers.linear import concat
    >>> from jaxmerge.stacks import stack_adapters
    >>> from jaxmerge.updates import dense
    >>> merge = each_module(concat)
    >>> print(dense(merge({"q": stack_adapters([([[2.0]], [[3.0]])])})["q"]))
    [[6.]]
    """

    def merge(
        stacks: Stacks, *, stats: Mapping[str, Statistics] | None = None, **extra: Any
    ) -> dict[str, Update]:
        check_model(merger, stacks)
        if stats is not None:
            check_statistics(stacks, stats)
            extra["stats"] = stats
        return map_modules(merger, stacks, **extra)

    return merge


def calibrated_model(merger: ModelMerger, *calibrations: Calibration) -> ModelMerger:
    """A merger of whole models with calibrations around it, the first one innermost.

    Module by module, like `jaxmerge.calibrated`; posts are calibrations too
    (``Calibration(after=post)``). Inputs of a call reach the posts as well.
    """
    prepare, finish = _prepare(calibrations), _finish(calibrations)

    def merge(
        stacks: Stacks,
        *,
        chunk: int | None = None,
        mesh: Mesh | None = None,
        gather: bool = False,
        **extra: Any,
    ) -> dict[str, Update]:
        devices = {"chunk": chunk, "mesh": mesh}
        between = {**devices, "gather": True}
        check_model(merger, stacks)
        around = {name: extra[name] for name in extra if name not in _OF_MERGERS}
        seen = map_modules(prepare, stacks, **around, **between) if prepare else stacks
        updates = merger(seen, **extra, **between)
        devices["gather"] = gather
        return map_modules(finish, stacks, updates, **around, **devices)

    return merge


_OF_MERGERS = ("key", "sample")  # inputs of a call that nothing around them declares


def _prepare(
    calibrations: tuple[Calibration, ...],
) -> Callable[..., AdapterStack] | None:
    """What the calibrations do to the adapters, the outermost first."""
    changes = [x.before for x in reversed(calibrations) if x.before is not None]

    def prepare(stack: AdapterStack, **extra: Any) -> AdapterStack:
        return reduce(lambda changed, change: change(changed, **extra), changes, stack)

    return prepare if changes else None


def _finish(
    calibrations: tuple[Calibration, ...],
) -> Callable[[AdapterStack, Update], Update]:
    """What the calibrations make of a module's merged update, the innermost first."""
    wrapped = reduce(calibrated, calibrations, _as_given)

    def finish(stack: AdapterStack, update: Update, **extra: Any) -> Update:
        return wrapped(stack, merged=update, **extra)

    return finish


def _as_given(stack: AdapterStack, *, merged: Update, **extra: Any) -> Update:
    return merged


def trim_whole_model(
    rule: Rule, space: Space, *, density: RealLike | None
) -> ModelMerger:
    """Merges with one trimming threshold for each task over all modules.

    TIES and KnOTS are published this way: a task's vector is that of the whole model,
    so a module of small updates can be trimmed away entirely. Trimming each module by
    itself, `jaxmerge.trim`, gives clearly different results.

    Args:
      rule: what merges the trimmed matrices, usually `jaxmerge.elect`. Build space and
        rule once: a new closure or ``partial`` compiles again.
      space: `jaxmerge.full` for TIES, `jaxmerge.knots` for KnOTS-TIES.
      density: share of all entries of a task to keep, in (0, 1]; may be traced. None
        where each task has its own: ``densities`` [T], given in the call.

    Returns:
      ModelMerger. A module that a task does not adapt counts as zeros; ``weights``, [T]
      or module -> [T], multiply the coordinates before trimming. Adapters that are
      `jaxmerge.streamed.Streamed` are read three times: twice for the threshold, then
      for the merge.

    Raises:
      ValueError: a density outside (0, 1], unless it is traced.

    Source: arXiv 2306.01708 and 2410.19735. Deviation: exactly
    ``floor(density * size)`` entries are kept, the official codes keep one more.

    >>> from jaxmerge.mergers.spaces import full
    >>> from jaxmerge.mergers.ties import elect
    >>> from jaxmerge.stacks import stack_adapters
    >>> one, nine = (stack_adapters([([[x]], [[1.0, 2.0]])]) for x in (1.0, 9.0))
    >>> stacks = {"q": one, "k": nine}
    >>> merged = trim_whole_model(elect, full, density=0.5)(stacks)
    >>> print(merged["q"], merged["k"])
    [[0. 0.]] [[ 9. 18.]]
    """
    if density is not None:
        check_density(density)
    project, merge_above = _project_every_task(space), _merge_above(space, rule)

    def merge(
        stacks: Stacks,
        *,
        weights: ArrayLike | Mapping[str, ArrayLike] | None = None,
        densities: ArrayLike | None = None,
        chunk: int | None = None,
        mesh: Mesh | None = None,
        gather: bool = False,
        **extra: Any,
    ) -> dict[str, Update]:
        check_model(trim_whole_model, stacks)
        kept = density_of(trim_whole_model, density, densities)
        devices = {"chunk": chunk, "mesh": mesh}
        projected = map_modules(
            project, stacks, weights=weights, gather=True, **devices
        )
        sizes: list[tuple[int, Any]] = []

        def blocks() -> Iterator[jax.Array]:
            sizes.clear()
            for matrices, _, size in projected.values():
                sizes.append((matrices[0].size, size))
                yield matrices

        def count() -> Any:
            entries = sum(entries for entries, _ in sizes)
            size = None if space.size is None else sum(size for _, size in sizes)
            return kept_count(kept, entries, size=size)

        if isinstance(projected, Streamed):
            threshold = threshold_in_passes(blocks, count)
        else:
            threshold = magnitude_threshold(list(blocks()), count())
        extra |= {"threshold": threshold, "gather": gather, **devices}
        return map_modules(merge_above, stacks, projected, **extra)

    return merge


@_kept_functions
def _project_every_task(space: Space) -> Callable[..., Any]:
    """Coordinates of all T tasks, zero where one is absent; made once for a space."""

    def project(stack: AdapterStack, *, weights: ArrayLike | None) -> Any:
        matrices, basis = space.project(stack)
        matrices = matrices * task_weights(stack, weights)[:, None, None]
        size = None if space.size is None else space.size(matrices, basis)
        every = jnp.zeros((len(stack.ranks), *matrices.shape[1:]), matrices.dtype)
        return every.at[jnp.asarray(stack.present)].set(matrices), basis, size

    return project


@_kept_functions
def _merge_above(space: Space, rule: Rule) -> Callable[..., Update]:
    """The merge of a module once the threshold of each task is known."""

    def merge(
        stack: AdapterStack, projected: Any, *, threshold: jax.Array, **extra: Any
    ) -> Update:
        matrices, basis, _ = projected
        kept = above(matrices, threshold)[jnp.asarray(stack.present)]
        return merged_in(space, rule, stack, (kept, basis), **extra)

    return merge
