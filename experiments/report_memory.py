"""Table and plot of what lies between one merge and every adapter."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.intervals import Right, difference
from experiments.records import Records, unpacked
from experiments.tables import markdown_table


def measured(row: Mapping[str, Any]) -> Right:
    """task -> which answers of a way are right, or what each text gains, [N]."""
    if "hits" in row:
        return unpacked(row["hits"])
    return {task: np.asarray(gains) for task, gains in row["gains"].items()}


def table(records: Records) -> str:
    """A row for each way, from what stores least to what stores most."""
    own = records.find(way="all adapters")
    if own is None:
        raise ValueError(f"{records.path}: no row of all adapters")
    alone = measured(own)
    tasks, rows = len(alone), []
    ways = [row for row in records.rows if "way" in row]
    for row in sorted(ways, key=lambda row: row["numbers"]):
        behind = difference([measured(row)], [alone], alone)
        shown = "" if row["way"] == "all adapters" else behind.shown()
        rows.append(
            [
                row["way"],
                f"{tasks * row['numbers'] / own['numbers']:.2f}",
                row["told"] or "nothing",
                f"{100 + behind.value:.1f}",
                shown,
            ]
        )
    head = ["what is kept", "adapters' worth of numbers>", "must be told"]
    head += ["% of own>", "from all adapters [95 %]>"]
    return markdown_table(head, rows)


def times(records: Records) -> str:
    """A row for each thing that runs in the model."""
    rows = records.all(kind="time")
    least = min((row["seconds"] for row in rows), default=1.0)
    return markdown_table(
        ["what runs", "microseconds an input>", "of the base>"],
        [
            [
                row["runs"],
                f"{1e6 * row['seconds'] / row['inputs']:.0f}",
                f"{row['seconds'] / least:.2f}",
            ]
            for row in rows
        ],
    )


def tables(records: Records) -> str:
    """Accuracy and memory, and times."""
    return f"{table(records)}\n{times(records)}"


def draw(records: Records, path: Path, *, what: str = "accuracy on test") -> None:
    """Accuracy over memory; hollow marks must be told the task or the group."""
    own = records.find(way="all adapters")
    if own is None:
        return
    alone = measured(own)
    tasks = len(alone)
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    families: dict[str, list[tuple[float, float, bool]]] = {}
    for row in (row for row in records.rows if "way" in row):
        kept = [found.mean() / alone[t].mean() for t, found in measured(row).items()]
        size = tasks * row["numbers"] / own["numbers"]
        point = (size, 100 * float(np.mean(kept)), bool(row["told"]))
        families.setdefault(family(row["way"]), []).append(point)
    for name, points in families.items():
        x, y, told = zip(*sorted(points), strict=True)
        inside = "none" if any(told) else None
        axes.plot(x, y, marker="o", label=name, linewidth=1, markerfacecolor=inside)
    axes.set_xlabel("numbers stored beside the base, in adapters")
    axes.set_ylabel(f"{what}, in % of the task's own adapter")
    axes.legend(fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def family(way: str) -> str:
    """What ways that differ in size only have in common.

    >>> family("cores, width 16"), family("4 groups, TSV-M, rank 16")
    ('cores', 'groups')
    """
    name = way.partition(", ")[0].lstrip("0123456789 ")
    return "fewer components" if "components" in name else name
