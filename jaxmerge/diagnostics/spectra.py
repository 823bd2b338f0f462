"""Norms and spectra of adapters and of merged updates, module by module."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike

from jaxmerge.io import Adapters
from jaxmerge.linalg import svd_of_product
from jaxmerge.types import AdapterStack, LowRank
from jaxmerge.updates import singular_value_decomposition


@dataclass(frozen=True)
class ModuleSummary:
    """Norm and spectrum of one module of one adapter.

    Attributes:
      shape: (m, n).
      rank: as stored; None for a dense update.
      scale: what was folded into b; None if it is unknown.
      norm: Frobenius norm.
      top: largest singular value.
      effective_rank: exp of the entropy of the singular values divided by their sum.
    """

    kind: str
    shape: tuple[int, int]
    rank: int | None
    scale: float | None
    norm: float
    top: float
    effective_rank: float


@dataclass(frozen=True)
class TaskSummary:
    """Norms and spectra of one adapter, or of one set of merged updates."""

    name: str
    base_model: str | None
    dtype: str
    modules: dict[str, ModuleSummary]

    @property
    def norm(self) -> float:
        """Frobenius norm over all modules."""
        return float(np.sqrt(sum(m.norm**2 for m in self.modules.values())))

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "norm": self.norm}


def summarize(
    value: Adapters | Mapping[str, Any],
    spectra: Mapping[str, ArrayLike] | None = None,
) -> list[TaskSummary]:
    """One summary for each adapter; one for a table of merged updates.

    Args:
      value: adapters, or module -> stack or update.
      spectra: module -> singular values [T, k] of the adapters, where they are known.
    """
    if isinstance(value, Adapters):
        spectra = spectra or _each(_spectra_of_stack, value.stacks)
        kinds = {module: layout.kind for module, layout in value.layouts.items()}
        return [
            TaskSummary(
                name,
                source.base_model,
                source.dtype,
                _of_task(value.stacks, spectra, task, kinds, source.scales),
            )
            for task, (name, source) in enumerate(
                zip(value.names, value.sources, strict=True)
            )
        ]
    stacks = {m: v for m, v in value.items() if isinstance(v, AdapterStack)}
    updates = {m: v for m, v in value.items() if m not in stacks}
    spectra = spectra or _each(_spectra_of_stack, stacks)
    tasks = max((len(stack.ranks) for stack in stacks.values()), default=0)
    found = [
        TaskSummary(f"task {task}", None, "", _of_task(stacks, spectra, task, {}, {}))
        for task in range(tasks)
    ]
    if updates:
        found.append(TaskSummary("merged updates", None, "", _of_updates(updates)))
    return found


def _of_task(
    stacks: Mapping[str, AdapterStack],
    spectra: Mapping[str, ArrayLike],
    task: int,
    kinds: Mapping[str, str],
    scales: Mapping[str, float],
) -> dict[str, ModuleSummary]:
    return {
        module: _module(
            np.asarray(spectra[module])[task],
            (stack.b.shape[1], stack.a.shape[2]),
            stack.ranks[task],
            kind=kinds.get(module, ""),
            scale=scales.get(module),
        )
        for module, stack in stacks.items()
        if stack.ranks[task]
    }


def _of_updates(
    updates: Mapping[str, LowRank | jax.Array],
) -> dict[str, ModuleSummary]:
    spectra = _each(_spectrum_of_update, updates)
    found = {}
    for module, update in updates.items():
        if isinstance(update, LowRank):
            (m, rank), n = update.b.shape, update.a.shape[1]
        else:
            (m, n), rank = update.shape, None
        found[module] = _module(spectra[module], (m, n), rank)
    return found


def _each(fn: Callable[[Any], jax.Array], modules: Mapping[str, Any]) -> dict[str, Any]:
    """A function of every module, in programs that serve any number of modules."""
    compiled = jax.jit(fn)
    return {name: compiled(module) for name, module in modules.items()}


def _spectra_of_stack(stack: AdapterStack) -> jax.Array:
    return svd_of_product(stack.b, stack.a)[1]


def _spectrum_of_update(update: LowRank | jax.Array) -> jax.Array:
    return singular_value_decomposition(update)[1]


def _module(
    values: ArrayLike,
    shape: tuple[int, int],
    rank: int | None,
    *,
    kind: str = "",
    scale: float | None = None,
) -> ModuleSummary:
    s = np.asarray(values, np.float64)
    share = s[s > 0] / s.sum() if s.any() else np.ones(1)
    return ModuleSummary(
        kind=kind,
        shape=shape,
        rank=rank,
        scale=scale,
        norm=float(np.linalg.norm(s)),
        top=float(s.max(initial=0.0)),
        effective_rank=float(np.exp(-np.sum(share * np.log(share)))),
    )
