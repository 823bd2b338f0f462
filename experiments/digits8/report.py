"""The table and the plot of the demonstration."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from experiments.digits8.results import Result
from jaxmerge.reports.tables import table


class Row(NamedTuple):
    """One method: means over its seeds, in percent, and their spread."""

    method: str
    normalised: np.ndarray  # [tasks]
    mean: float
    spread: float  # half the distance between the best and the worst seed
    seeds: int


def rows_of(results: Sequence[Result]) -> list[Row]:
    """The base first, then the methods from best to worst."""
    rows = []
    for method, group in groupby(results, key=lambda result: result.method):
        group = list(group)
        each = 100 * np.array([list(result.normalised.values()) for result in group])
        means = each.mean(axis=1)
        spread = float(np.ptp(means)) / 2
        row = Row(method, each.mean(axis=0), float(means.mean()), spread, len(group))
        rows.append(row)
    return [rows[0], *sorted(rows[1:], key=lambda row: -row.mean)]


def lines(
    results: Sequence[Result], saved: Result, seconds: float, out: Path
) -> Iterator[Any]:
    """What the demonstration prints."""
    tasks = list(results[0].normalised)
    yield "Normalised accuracy on test: merged / own adapter, in %"
    yield table(
        ["method", *(f"{task}>" for task in tasks), "mean>", "+-"],
        (
            (
                row.method,
                *(f"{value:.0f}" for value in row.normalised),
                f"{row.mean:.1f}",
                f"{row.spread:.1f} ({row.seeds} seeds)" if row.seeds > 1 else "",
            )
            for row in rows_of(results)
        ),
    )
    yield (
        f"The best of low rank on validation is saved: {saved.method}, {saved.pipeline}"
    )
    yield f"Results, plot and that adapter are in {out} ({seconds:.0f} s)"


def show(parts: Iterable[Any]) -> None:
    """Prints lines and tables, which a file gets at their full width."""
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    for part in parts:
        console.print(part, markup=False, soft_wrap=isinstance(part, str))


def draw(path: Path, results: Sequence[Result]) -> None:
    """Draws all methods: their mean with its spread, and every task."""
    rows = rows_of(results)
    rows = sorted(rows, key=lambda row: row.mean)
    tasks = list(results[0].normalised)
    figure = Figure(figsize=(11, 1.6 + 0.34 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 3))
    places = np.arange(len(rows))
    base = next(row for row in rows if row.method == results[0].method)

    left.barh(
        places,
        [row.mean for row in rows],
        xerr=[row.spread for row in rows],
        color=["0.7" if row is base else "tab:blue" for row in rows],
    )
    for place, row in zip(places, rows, strict=True):
        left.text(row.mean - 1, place, f"{row.mean:.1f}", va="center", ha="right")
    left.axvline(base.mean, color="0.4", linestyle=":", label="base, no adapter")
    left.set_yticks(places, [row.method for row in rows])
    left.set_xlabel("mean normalised accuracy on test, %")
    left.set_xlim(0, 100)

    values = np.array([row.normalised for row in rows])
    image = right.imshow(values, aspect="auto", cmap="viridis", vmin=0, vmax=100)
    for (place, task), value in np.ndenumerate(values):
        colour = "white" if value < 60 else "black"
        right.text(task, place, f"{value:.0f}", va="center", ha="center", color=colour)
    right.set_xticks(np.arange(len(tasks)), tasks, rotation=30, ha="right")
    figure.colorbar(image, ax=right, label="merged / own adapter, %")
    figure.suptitle("Eight digit adapters merged into one model")
    figure.savefig(path, dpi=130)
