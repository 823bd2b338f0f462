"""Diagnostics of several adapters as tables for the terminal."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxmerge.diagnostics.findings import Findings, Numbers
from jaxmerge.diagnostics.spectra import TaskSummary
from jaxmerge.diagnostics.verdict import said_of_pair
from jaxmerge.reports.tables import coloured, span, table

Cell = tuple[str, Callable[[Numbers], float | None]]

CELLS: tuple[Cell, ...] = (
    ("own ranks", lambda x: x.sum_of_ranks),
    ("own directions", lambda x: x.sum_of_directions),
    ("all directions", lambda x: x.directions),
    ("updates", lambda x: x.updates),
    ("overlap B", lambda x: x.overlap_b),
    ("random B", lambda x: x.random_b),
    ("overlap A", lambda x: x.overlap_a),
    ("random A", lambda x: x.random_a),
    ("sign conflict", lambda x: x.sign_conflict),
    ("cosine", lambda x: x.cosine),
    ("norm ratio", lambda x: x.norm_ratio),
    ("rank for 90 %", lambda x: x.rank_for_share),
    ("B stable rank", lambda x: x.before["stable_rank"]),
    ("B with pico", lambda x: x.after["stable_rank"]),
)


def task_table(task: TaskSummary, *, each: bool) -> Any:
    """Modules of one kind and shape in one line, or each in its own."""
    groups = defaultdict(list)
    for name, module in task.modules.items():
        leaf = name if each else name.rpartition(".")[2]
        groups[leaf, module.shape].append(module)
    columns = ("modules", "kind", "count>", "rank>", "scale>", "norm>")
    return table(
        (*columns, "largest singular value>", "effective rank>"),
        [
            (
                f"{name} {shape[0]}x{shape[1]}",
                group[0].kind,
                len(group),
                span(m.rank for m in group if m.rank is not None),
                span(m.scale for m in group if m.scale is not None),
                span(m.norm for m in group),
                span(m.top for m in group),
                span(m.effective_rank for m in group),
            )
            for (name, shape), group in groups.items()
        ],
    )


def module_table(found: Findings, *, each: bool) -> Any:
    """Means of the modules of one kind and shape, or each module, and the total."""
    groups = defaultdict(list)
    for name, numbers in found.modules.items():
        leaf = name if each else name.rpartition(".")[2]
        groups[leaf, found.shapes[name]].append(numbers)
    rows = [
        (f"{name} {m}x{n}", len(group), *(mean(cell, group) for _, cell in CELLS))
        for (name, (m, n)), group in groups.items()
    ]
    total = [shown(cell(found.total)) for _, cell in CELLS]
    columns = [f"{title}>" for title, _ in CELLS]
    return table(
        ("modules", "count>", *columns),
        [*rows, ("all", len(found.modules), *total)],
    )


def pair_table(found: Findings) -> Any:
    """A table of what every two tasks have in common."""
    columns = ("overlap B>", "random B>", "overlap A>", "random A>")
    return table(
        ("adapters", *columns, "sign conflict>", "cosine>", "says"),
        [
            (
                " + ".join(pair.tasks),
                *map(shown, (pair.overlap_b, pair.random_b)),
                *map(shown, (pair.overlap_a, pair.random_a)),
                *map(shown, (pair.sign_conflict, pair.cosine)),
                coloured(*said_of_pair(pair)),
            )
            for pair in found.pairs
        ],
    )


def mean(cell: Callable[[Numbers], float | None], group: Sequence[Numbers]) -> str:
    """Mean of the modules where there is something to measure."""
    values = [value for x in group if (value := cell(x)) is not None]
    return shown(float(np.mean(values)) if values else None)


def shown(value: float | None) -> str:
    """A number with three digits.

    >>> shown(0.03125), shown(97.4), shown(None), shown(-1e-9)
    ('0.031', '97.4', '-', '0.000')
    """
    if value is None:
        return "-"
    text = f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    return text.lstrip("-") if float(text) == 0 else text
