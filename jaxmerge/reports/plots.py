"""The plots of the diagnostics: what each shows, in a picture and in words."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from jaxmerge.diagnostics import Diagnosis
from jaxmerge.diagnostics.findings import SHARE, Findings, Numbers
from jaxmerge.reports.comparison import shown
from jaxmerge.reports.drawing import Draw, curves, heat_map

Values = np.ndarray | jax.Array


@dataclass(frozen=True)
class Plot:
    """One plot.

    Attributes:
      name: of its file, without ``.png``.
      title: what it shows.
      source: the paper's figure that it corresponds to.
      alt: its content in words, with numbers.
      draw: draws it.
    """

    name: str
    title: str
    source: str
    alt: str
    draw: Draw


def plots_of(found: Findings) -> list[Plot]:
    """All plots of some adapters."""
    b = _over_modules(found, lambda d: d.overlaps.b)
    a = _over_modules(found, lambda d: d.overlaps.a)
    return [
        _effective_ranks(found),
        _overlap_by_layer(found),
        _by_pair(
            found,
            b,
            name="overlap_b",
            title="Overlap of outputs (B), pair by pair",
            source="Pico's heat maps of overlap, B",
        ),
        _by_pair(
            found,
            a,
            name="overlap_a",
            title="Overlap of inputs (A), pair by pair",
            source="Pico's heat maps of overlap, A",
        ),
        _spectrum(found),
        _energy(found),
        _by_pair(
            found,
            _of_pairs(found, "sign_conflict"),
            name="sign_conflict",
            title="Entries with opposite signs, pair by pair",
            source="TIES' figure of sign conflicts",
        ),
        _by_pair(
            found,
            _of_pairs(found, "cosine"),
            name="cosine",
            title="Cosine of the updates, pair by pair",
            source="the figure of cosines in task arithmetic",
        ),
    ]


def layers(names: Sequence[str]) -> dict[str, list[str]]:
    """Modules by layer, in the order of the numbers in their names.

    >>> layers(["h.10.q", "h.2.q", "h.2.v"])
    {'2': ['h.2.q', 'h.2.v'], '10': ['h.10.q']}
    """
    groups: dict[tuple[str, int], list[str]] = {}
    for name in names:
        match = re.match(r"(.*?)(?:^|\.)(\d+)(?=\.|$)", name)
        layer = (match[1], int(match[2])) if match else (name, -1)
        groups.setdefault(layer, []).append(name)
    alone = len({prefix for prefix, number in groups if number >= 0}) <= 1
    return {
        prefix if number < 0 else str(number) if alone else f"{prefix}.{number}": group
        for (prefix, number), group in sorted(groups.items())
    }


def _effective_ranks(found: Findings) -> Plot:
    title, total = "Effective rank by layer", found.total
    groups = layers(list(found.modules))
    values = {
        "sum over tasks": _by_layer(found, groups, lambda x: x.sum_of_directions),
        "all directions": _by_layer(found, groups, lambda x: x.directions),
        "updates": _by_layer(found, groups, lambda x: x.updates),
    }
    alt = (
        f"{title}. Mean over modules: {shown(total.sum_of_directions)} for the tasks' "
        f"directions added up, {shown(total.directions)} for all directions together, "
        f"{shown(total.updates)} for the stack of the {len(found.tasks)} updates."
    )
    draw = curves(values, x="layer", y="effective rank", names=list(groups))
    source = "TARA's figure of subspace coverage"
    return Plot("effective_rank", title, source, alt, draw)


def _overlap_by_layer(found: Findings) -> Plot:
    title, total = "Overlap by layer, mean over pairs", found.total
    groups = layers(list(found.modules))
    random = [
        _by_layer(found, groups, lambda x: x.random_b),
        _by_layer(found, groups, lambda x: x.random_a),
    ]
    values = {
        "B": _by_layer(found, groups, lambda x: x.overlap_b),
        "A": _by_layer(found, groups, lambda x: x.overlap_a),
        "random, mean of both": np.mean(random, axis=0),
    }
    alt = (
        f"{title}. Mean over modules: {shown(total.overlap_b)} for B (random subspaces "
        f"{shown(total.random_b)}), {shown(total.overlap_a)} for A (random subspaces "
        f"{shown(total.random_a)})."
    )
    draw = curves(values, x="layer", y="overlap", names=list(groups))
    return Plot("overlap", title, "Pico's figure of overlap by layer", alt, draw)


def _spectrum(found: Findings) -> Plot:
    title = "Spectrum of stacked B, before and after calibration"

    def mean_share(when: str) -> np.ndarray:
        values = [getattr(d, when).values for d in found.arrays.values()]
        return _mean_of_ragged([v / (np.linalg.norm(v) or 1) for v in values])

    values = {"before": mean_share("before"), "calibrated": mean_share("after")}
    before, after = found.total.before, found.total.after
    alt = (
        f"{title}. Effective rank {shown(before['effective_rank'])} before and "
        f"{shown(after['effective_rank'])} after, stable rank "
        f"{shown(before['stable_rank'])} and {shown(after['stable_rank'])}, condition "
        f"number {shown(before['condition'])} and {shown(after['condition'])}."
    )
    draw = curves(values, x="direction", y="singular value / norm")
    return Plot("spectrum", title, "Pico's spectrum of B", alt, draw)


def _energy(found: Findings) -> Plot:
    title = "Energy kept by truncation"
    of_sum = _mean_of_ragged([d.energy for d in found.arrays.values()], fill=1.0)
    values = {"sum of the adapters": of_sum}
    single = [
        d.task_energy[t]
        for d in found.arrays.values()
        for t in range(len(found.tasks))
        if d.norms[t] > 0
    ]
    if single:
        values["one adapter"] = _mean_of_ragged(single, fill=1.0)
    alt = (
        f"{title}. Of the sum of the adapters rank 1 keeps {of_sum[0]:.0%}, and 90 % "
        f"need rank {shown(found.total.rank_for_share)} in the mean over modules."
    )
    draw = curves(values, x="rank", y="share of squared norm", level=SHARE)
    return Plot("energy", title, "energy by rank, as in TSV-M and CtM", alt, draw)


def _by_pair(
    found: Findings,
    values: np.ndarray,
    *,
    name: str,
    title: str,
    source: str,
) -> Plot:
    tasks = found.tasks
    pairs = [
        f"{tasks[i]} and {tasks[j]} {round(values[i, j], 2) + 0:.2f}"
        for i, j in zip(*np.triu_indices(len(tasks), 1), strict=True)
        if np.isfinite(values[i, j])
    ]
    alt = f"{title}: {', '.join(pairs) or 'no pair'}."
    draw = heat_map(values, tasks, harm=True)
    return Plot(name, title, source, alt, draw)


def _by_layer(
    found: Findings,
    groups: dict[str, list[str]],
    number: Callable[[Numbers], float | None],
) -> list[float]:
    """Mean over the modules of every layer; NaN where there is nothing to measure."""
    means = []
    for group in groups.values():
        values = [number(found.modules[name]) for name in group]
        present = [value for value in values if value is not None]
        means.append(float(np.mean(present)) if present else np.nan)
    return means


def _over_modules(found: Findings, matrix: Callable[[Diagnosis], Values]) -> np.ndarray:
    """Mean [T, T] over the modules that both tasks change; NaN on the diagonal."""
    values = np.array([matrix(d) for d in found.arrays.values()])
    there = np.array([d.overlaps.random_b > 0 for d in found.arrays.values()])
    there &= ~np.eye(len(found.tasks), dtype=bool)
    count = there.sum(axis=0)
    total = np.where(there, values, 0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _of_pairs(found: Findings, name: str) -> np.ndarray:
    values = np.full((len(found.tasks),) * 2, np.nan)
    for pair in found.pairs:
        i, j = (found.tasks.index(task) for task in pair.tasks)
        values[i, j] = values[j, i] = getattr(pair, name)
    return values


def _mean_of_ragged(rows: Sequence[Values], *, fill: float = 0.0) -> np.ndarray:
    width = max(map(len, rows))
    filled = [np.pad(r, (0, width - len(r)), constant_values=fill) for r in rows]
    return np.mean(filled, axis=0)
