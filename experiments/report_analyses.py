"""Tables and plots from the analyses of learned merges.

    python -m experiments.report_analyses vision8
    python -m experiments.report_analyses vision8 --within entropy

Reads ``results/analyses.jsonl`` and the references in ``results/merging.jsonl`` of an
experiment, and writes ``analyses.md`` and ``analyses.png`` beside them. ``entropy`` has
the analyses of merges that were learned by entropy, with the comparison of then.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.records import Records
from experiments.tables import markdown_table

HERE = Path(__file__).parent
Row = dict[str, Any]


class Results:
    """Rows of the analyses, and accuracies relative to the own adapters."""

    def __init__(self, folder: Path):
        self.records = Records(folder / "analyses.jsonl")
        own = Records(folder / "merging.jsonl").find(kind="own", part="test")
        if own is None or not self.records.rows:
            raise ValueError(f"{folder}: no results; python -m experiments.analyses")
        self.own = own["accuracy"]

    def by_method(self, analysis: str) -> dict[str, list[Row]]:
        """The rows of one analysis, in the order of their first appearance."""
        groups: dict[str, list[Row]] = {}
        for row in self.records.all(analysis=analysis):
            groups.setdefault(row["method"], []).append(row)
        return groups

    def percent(self, row: Row) -> dict[str, float]:
        """Accuracy of each task in percent of its own adapter."""
        found = row["accuracy"]
        return {task: 100 * found[task] / self.own[task] for task in found}

    def mean(self, row: Row) -> float:
        return float(np.mean(list(self.percent(row).values())))


def _table(head: list[str], rows: list[list[str]]) -> str:
    return markdown_table([head[0], *(f"{column}>" for column in head[1:])], rows)


def unseen(results: Results) -> str:
    groups = results.by_method("unseen")
    first = next(iter(groups.values()))
    head = ["merged without", *(", ".join(row["tasks"]) for row in first), "mean"]
    rows = []
    for method, found in groups.items():
        means = [results.mean(row) for row in found]
        cells = [f"{mean:.1f}" for mean in (*means, float(np.mean(means)))]
        rows.append([method, *cells])
    return _table(head, rows)


def tradeoff(results: Results) -> str:
    rows = []
    for method, found in results.by_method("tradeoff").items():
        for row in found:
            percent = results.percent(row)
            cells = [f"{task} {value:.1f}" for task, value in percent.items()]
            rows.append([method, f"{row['preference'][0]:g}", *cells])
    return _table(["method", "weight of the first", "first", "second"], rows)


def preferences(results: Results) -> str:
    rows = []
    for method, found in results.by_method("preferences").items():
        weighed = [
            sum(w * results.percent(row)[t] for w, t in _weights(row)) for row in found
        ]
        plain = [results.mean(row) for row in found]
        rows.append(
            [
                method,
                str(len(found)),
                f"{np.mean(plain):.1f} ± {np.std(plain, ddof=1):.1f}",
                f"{np.mean(weighed):.1f} ± {np.std(weighed, ddof=1):.1f}",
            ]
        )
    head = ["method", "preferences", "mean", "mean weighed by the preference"]
    return _table(head, rows)


def _weights(row: Row) -> Iterator[tuple[float, str]]:
    return zip(row["preference"], row["accuracy"], strict=True)


def objective(results: Results) -> str:
    found = results.records.all(analysis="objective")
    alphas = sorted({row["alpha"] for row in found})
    rows = []
    for absolute, name in ((False, "f - z"), (True, "abs(f - z)")):
        means = {
            row["alpha"]: results.mean(row)
            for row in found
            if row["absolute"] == absolute
        }
        rows.append([name, *(f"{means[alpha]:.1f}" for alpha in alphas)])
    return _table(["gap", *(f"alpha {alpha:g}" for alpha in alphas)], rows)


def budget(results: Results) -> str:
    found = results.records.all(analysis="budget")
    steps = sorted({row["steps"] for row in found})
    rows = []
    for batch in sorted({row["batch"] for row in found}):
        means = {
            row["steps"]: results.mean(row) for row in found if row["batch"] == batch
        }
        rows.append([str(batch), *(f"{means[count]:.1f}" for count in steps)])
    return _table(["batch", *(f"{count} steps" for count in steps)], rows)


SECTIONS: dict[str, tuple[str, Callable[[Results], str]]] = {
    "unseen": ("Tasks left out of the merge, with their own heads", unseen),
    "tradeoff": ("Preferences between two tasks", tradeoff),
    "preferences": ("Random preferences between all tasks", preferences),
    "objective": ("The smooth Tchebycheff objective of TARA-B", objective),
    "budget": ("Batch size and steps of TARA-B", budget),
}


def markdown(results: Results) -> str:
    """All analyses that have results, in percent of the tasks' own adapters."""
    parts = ["Accuracy on test in % of each task's own adapter.\n"]
    for name, (title, make) in SECTIONS.items():
        if results.records.all(analysis=name):
            parts += [f"\n## {title}\n\n", make(results)]
    return "".join(parts)


def _draw_tradeoff(axes: Axes, results: Results, pair: list[str]) -> None:
    for method, rows in results.by_method("tradeoff").items():
        points = [results.percent(row) for row in rows if row["tasks"] == pair]
        x, y = ([point[task] for point in points] for task in pair)
        axes.plot(x, y, "o-", markersize=4, label=method)
    axes.set_xlabel(pair[0])
    axes.set_ylabel(pair[1])
    axes.set_title("preferences between two tasks", fontsize=9)
    axes.legend(fontsize=7)


def _draw_preferences(axes: Axes, results: Results) -> None:
    groups = results.by_method("preferences")
    means = [[results.mean(row) for row in rows] for rows in groups.values()]
    axes.boxplot(means, orientation="horizontal")
    axes.set_yticks(range(1, len(groups) + 1), list(groups))
    axes.set_xlabel("mean over tasks")
    axes.set_title("random preferences", fontsize=9)


def draw(path: Path, results: Results) -> None:
    """Trade-off curves, and the spread over random preferences."""
    pairs: list[list[str]] = []
    for row in results.records.all(analysis="tradeoff"):
        if row["tasks"] not in pairs:
            pairs.append(row["tasks"])
    panels = [
        lambda axes, pair=pair: _draw_tradeoff(axes, results, pair) for pair in pairs
    ]
    if results.records.all(analysis="preferences"):
        panels.append(lambda axes: _draw_preferences(axes, results))
    figure = Figure(figsize=(4 * len(panels), 3.4), layout="constrained")
    for axes, panel in zip(
        np.ravel(figure.subplots(1, len(panels))), panels, strict=True
    ):
        panel(axes)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main(
    name: Annotated[str, typer.Argument(help="folder in experiments")],
    within: Annotated[str, typer.Option(help="folder in its results")] = "",
) -> None:
    """Writes tables and plots of the analyses of one experiment."""
    folder = HERE / name / "results" / within
    results = Results(folder)
    text = markdown(results)
    (folder / "analyses.md").write_text(text, encoding="utf-8")
    draw(folder / "analyses.png", results)
    print(text)


if __name__ == "__main__":
    typer.run(main)
