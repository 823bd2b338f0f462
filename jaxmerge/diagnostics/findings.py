"""The diagnostics of a set of adapters: by module, by pair of tasks and in total."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import numpy as np

from jaxmerge.diagnostics import Crowding, Diagnosis
from jaxmerge.diagnostics.module import diagnose_each
from jaxmerge.types import AdapterStack

SHARE = 0.9  # of the energy, for which a rank is given


@dataclass(frozen=True)
class Numbers:
    """Diagnostics of one module, or of all; None where there is no pair of tasks.

    Attributes:
      sum_of_ranks: effective ranks of the tasks' updates, added up.
      sum_of_directions: the same of each task's stack of rank-1 directions.
      directions: effective rank of the stack of the directions of all tasks.
      updates: effective rank of the stack of the updates.
      overlap_b: of column spaces of B, mean over pairs of tasks; beside it what random
        subspaces have, and the same for row spaces of A.
      sign_conflict: share of entries with opposite signs, mean over pairs.
      any_conflict: share of entries where any two tasks disagree.
      cosine: of the updates, mean over pairs.
      norm_ratio: norm of the sum over the mean of the single norms.
      rank_for_share: smallest rank that keeps 90 % of the energy of the sum.
      before: stacked B, without its singular values.
      after: the same, calibrated by Pico.
    """

    sum_of_ranks: float
    sum_of_directions: float
    directions: float
    updates: float
    overlap_b: float | None
    random_b: float | None
    overlap_a: float | None
    random_a: float | None
    sign_conflict: float | None
    any_conflict: float
    cosine: float | None
    norm_ratio: float
    rank_for_share: float
    before: dict[str, float]
    after: dict[str, float]


@dataclass(frozen=True)
class Pair:
    """What two tasks have in common: means over modules, and one cosine of all."""

    tasks: tuple[str, str]
    overlap_b: float
    random_b: float
    overlap_a: float
    random_a: float
    sign_conflict: float
    cosine: float


@dataclass(frozen=True)
class Findings:
    """What `jaxmerge.diagnostics.diagnose` says about every module, as numpy arrays."""

    tasks: tuple[str, ...]
    shapes: dict[str, tuple[int, int]]
    arrays: dict[str, Diagnosis]
    modules: dict[str, Numbers]
    pairs: tuple[Pair, ...]
    total: Numbers

    def to_json(self) -> dict[str, Any]:
        return {
            "total": asdict(self.total),
            "pairs": [asdict(pair) for pair in self.pairs],
            "modules": {
                module: {
                    **asdict(numbers),
                    "shape": self.shapes[module],
                    "by_pair": {
                        "overlap_b": self.arrays[module].overlaps.b.tolist(),
                        "overlap_a": self.arrays[module].overlaps.a.tolist(),
                        "sign_conflict": self.arrays[module].signs.pairs.tolist(),
                        "cosine": self.arrays[module].cosines.tolist(),
                    },
                    "norms": self.arrays[module].norms.tolist(),
                    "spectrum_before": self.arrays[module].before.values.tolist(),
                    "spectrum_after": self.arrays[module].after.values.tolist(),
                    "energy_kept": self.arrays[module].energy.tolist(),
                }
                for module, numbers in self.modules.items()
            },
        }


def find(
    tasks: Sequence[str],
    stacks: Mapping[str, AdapterStack],
    *,
    report: Callable[[], None] | None = None,
) -> Findings:
    """Diagnoses all modules of at least two adapters; calls ``report`` after each."""
    arrays = diagnose_each(stacks, report=report)
    shapes = {m: (s.b.shape[1], s.a.shape[2]) for m, s in stacks.items()}
    modules = {module: _of_module(found) for module, found in arrays.items()}
    pairs = tuple(
        pair
        for i, j in itertools.combinations(range(len(tasks)), 2)
        if (pair := _pair(tasks, arrays, shapes, i, j)) is not None
    )
    return Findings(
        tasks=tuple(tasks),
        shapes=shapes,
        arrays=arrays,
        modules=modules,
        pairs=pairs,
        total=_total(modules, arrays, shapes, pairs),
    )


def _of_module(found: Diagnosis) -> Numbers:
    meet = np.triu(found.overlaps.random_b > 0, 1)

    def over_pairs(matrix: np.ndarray | jax.Array) -> float | None:
        return float(matrix[meet].mean()) if meet.any() else None

    return Numbers(
        sum_of_ranks=float(found.ranks.tasks.sum()),
        sum_of_directions=float(found.ranks.own_directions.sum()),
        directions=float(found.ranks.directions),
        updates=float(found.ranks.updates),
        overlap_b=over_pairs(found.overlaps.b),
        random_b=over_pairs(found.overlaps.random_b),
        overlap_a=over_pairs(found.overlaps.a),
        random_a=over_pairs(found.overlaps.random_a),
        sign_conflict=over_pairs(found.signs.pairs),
        any_conflict=float(found.signs.anywhere),
        cosine=over_pairs(found.cosines),
        norm_ratio=float(found.norm_ratio),
        rank_for_share=float(1 + np.argmax(found.energy >= SHARE)),
        before=_numbers_of(found.before),
        after=_numbers_of(found.after),
    )


def _numbers_of(found: Crowding) -> dict[str, float]:
    return {k: float(v) for k, v in found._asdict().items() if k != "values"}


def _pair(
    tasks: Sequence[str],
    arrays: Mapping[str, Diagnosis],
    shapes: Mapping[str, tuple[int, int]],
    i: int,
    j: int,
) -> Pair | None:
    """Two tasks over the modules that both adapt; None if there is none."""
    both = {m: d for m, d in arrays.items() if d.overlaps.random_b[i, j] > 0}
    if not both:
        return None

    def mean(values: Any, weights: Any = None) -> float:
        return float(np.average([x[i, j] for x in values], weights=weights))

    overlaps = [d.overlaps for d in both.values()]
    norms = np.array([d.norms[[i, j]] for d in both.values()])
    inner = sum(d.cosines[i, j] * d.norms[i] * d.norms[j] for d in both.values())
    return Pair(
        tasks=(tasks[i], tasks[j]),
        overlap_b=mean(o.b for o in overlaps),
        random_b=mean(o.random_b for o in overlaps),
        overlap_a=mean(o.a for o in overlaps),
        random_a=mean(o.random_a for o in overlaps),
        sign_conflict=mean(
            (d.signs.pairs for d in both.values()), [np.prod(shapes[m]) for m in both]
        ),
        cosine=float(inner / np.prod(np.linalg.norm(norms, axis=0))),
    )


def _total(
    modules: Mapping[str, Numbers],
    arrays: Mapping[str, Diagnosis],
    shapes: Mapping[str, tuple[int, int]],
    pairs: Sequence[Pair],
) -> Numbers:
    """Means over modules; norms, signs and cosines of the model as a whole."""

    def mean(name: str) -> float:
        return float(np.mean([getattr(numbers, name) for numbers in modules.values()]))

    def mean_of_present(name: str) -> float | None:
        values = [getattr(numbers, name) for numbers in modules.values()]
        present = [value for value in values if value is not None]
        return float(np.mean(present)) if present else None

    def over_pairs(name: str) -> float | None:
        return float(np.mean([getattr(p, name) for p in pairs])) if pairs else None

    def mean_of_stacked(when: str) -> dict[str, float]:
        each = [getattr(numbers, when) for numbers in modules.values()]
        return {name: float(np.mean([x[name] for x in each])) for name in each[0]}

    norms = np.array([found.norms for found in arrays.values()])
    single = np.linalg.norm(norms, axis=0)
    merged = np.linalg.norm([found.sum_norm for found in arrays.values()])
    entries = [np.prod(shapes[module]) for module in arrays]
    return Numbers(
        sum_of_ranks=mean("sum_of_ranks"),
        sum_of_directions=mean("sum_of_directions"),
        directions=mean("directions"),
        updates=mean("updates"),
        overlap_b=mean_of_present("overlap_b"),
        random_b=mean_of_present("random_b"),
        overlap_a=mean_of_present("overlap_a"),
        random_a=mean_of_present("random_a"),
        rank_for_share=mean("rank_for_share"),
        sign_conflict=over_pairs("sign_conflict"),
        any_conflict=float(
            np.average([d.signs.anywhere for d in arrays.values()], weights=entries)
        ),
        cosine=over_pairs("cosine"),
        norm_ratio=float(merged / single.mean()) if single.any() else 0.0,
        before=mean_of_stacked("before"),
        after=mean_of_stacked("after"),
    )
