"""Table and plot of the comparison of starts.

    python -m experiments.report_osrm vision8

Reads ``experiments/<name>/results/osrm.jsonl`` and writes ``osrm.md`` and ``osrm.png``
beside it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.osrm import CURVE, MERGES
from experiments.records import Records
from experiments.tables import markdown_table
from jaxmerge.spec import parse

HERE = Path(__file__).parent
Row = dict[str, Any]
LEAKAGES = {
    "leakage of the first A": "first A",
    "leakage of A": "trained A",
    "leakage": "trained update",
}


def means(rows: Sequence[Row]) -> np.ndarray:
    """Mean accuracy over the tasks in percent, for every row."""
    return np.array([100 * np.mean(list(row["accuracy"].values())) for row in rows])


def leaked(row: Row) -> float:
    """Size of the change on inputs of other tasks, in percent of that on the own."""
    values = np.array(row["values"])
    own = np.diag(values)
    others = (values.sum(axis=1) - own) / (len(values) - 1)
    return float(100 * np.mean(others / own))


def starts(records: Records) -> list[str]:
    """Names of the starts, in the order of the file.

    Raises:
      ValueError: there are no results yet.
    """
    found = dict.fromkeys(row["start"] for row in records.rows)
    if not found:
        raise ValueError(f"{records.path}: no results; python -m experiments.osrm")
    return list(found)


def markdown(records: Records) -> str:
    """Rows: what was measured on test. Columns: starts. Spread over seeds."""
    names = starts(records)
    own = [records.all(kind="own", start=name, part="test") for name in names]
    table = [["own adapters", *(_spread(means(rows)) for rows in own)]]
    for method in MERGES:
        cells = []
        for name in names:
            rows = records.all(kind="merge", start=name, method=method, part="test")
            scale = f" ({_scale(rows[0])})" if rows else ""
            cells.append(_spread(means(rows)) + scale)
        table.append([method, *cells])
    for kind, shown in LEAKAGES.items():
        rows = [records.all(kind=kind, start=name) for name in names]
        cells = [_spread(np.array([leaked(row) for row in found])) for found in rows]
        table.append([f"{shown} on other tasks' inputs, % of own", *cells])
    head = ["mean accuracy on test, %", *(f"{name}>" for name in names)]
    return markdown_table(head, table)


def draw(path: Path, records: Records) -> None:
    """Task arithmetic over scales on validation, and every merge on test."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    seeds = {
        name: len(records.all(kind="own", start=name, part="test"))
        for name in starts(records)
    }
    compared = [name for name in seeds if seeds[name] == max(seeds.values())]
    for name in compared:
        _draw_curve(left, records, name)
    left.set_xlabel("scale of task arithmetic")
    left.set_ylabel("mean accuracy on validation, %")
    left.legend(fontsize=8)
    for index, name in enumerate(compared):
        rows = [
            records.all(kind="merge", start=name, method=method, part="test")
            for method in MERGES
        ]
        places = np.arange(len(MERGES)) + 0.2 * index
        values = [means(found).mean() if found else np.nan for found in rows]
        errors = [means(found).std(ddof=1) if len(found) > 1 else 0.0 for found in rows]
        right.errorbar(places, values, errors, fmt="o", capsize=3, label=name)
    right.set_xticks(np.arange(len(MERGES)) + 0.1, MERGES, rotation=25, ha="right")
    right.set_ylabel("mean accuracy on test, %")
    right.legend(fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def _draw_curve(axes: Axes, records: Records, name: str) -> None:
    points: dict[float, list[float]] = {}
    for row in records.all(kind="merge", start=name, method=CURVE, part="validation"):
        points.setdefault(_scale(row), []).extend(means([row]))
    scales = sorted(points)
    centre = np.array([np.mean(points[scale]) for scale in scales])
    spread = np.array([np.std(points[scale]) for scale in scales])
    axes.plot(scales, centre, "o-", markersize=4, label=name)
    axes.fill_between(scales, centre - spread, centre + spread, alpha=0.2)


def _scale(row: Row) -> float:
    return parse(row["pipeline"]).scale


def _spread(values: np.ndarray) -> str:
    if len(values) == 0:
        return ""
    deviation = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
    return f"{values.mean():.1f}{deviation}"


def main(name: Annotated[str, typer.Argument(help="nli6 or vision8")]) -> None:
    """Writes table and plot of one experiment, and prints the table."""
    folder = HERE / name / "results"
    records = Records(folder / "osrm.jsonl")
    text = markdown(records)
    (folder / "osrm.md").write_text(text, encoding="utf-8")
    draw(folder / "osrm.png", records)
    print(text)


if __name__ == "__main__":
    typer.run(main)
