"""Tables and plots from the results of an experiment.

Every method stands with its distance from the best one, and the 95 % interval of that
from the paired bootstrap over the test inputs (`experiments.intervals`).

    python -m experiments.report nli6
    python -m experiments.report vision8

Reads ``experiments/<suite>/results/merging.jsonl`` and writes ``merging.md`` and
``merging.png`` beside it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from matplotlib.figure import Figure

from experiments.choosing import rows_on_test
from experiments.intervals import Difference, Right, difference
from experiments.records import Records, unpacked
from experiments.tables import markdown_table

HERE = Path(__file__).parent


class Line(NamedTuple):
    """One method on test: means over its seeds, in percent of the own adapters."""

    method: str
    normalised: np.ndarray  # [tasks]
    mean: float
    spread: float | None = None  # standard deviation of the mean over seeds
    accuracy: float = np.nan  # mean over tasks, in percent
    seconds: float = 0.0  # of the longest merge or fit, compilation included
    chosen: str = ""
    answers: tuple[Right, ...] = ()  # of each seed, which are right
    behind: Difference | None = None  # from the best method, in points


def read_lines(records: Records) -> tuple[list[str], Line, list[Line]]:
    """Names of the tasks, the base, and the methods from best to worst.

    Raises:
      ValueError: the run has not measured the references yet.
    """
    base = records.find(kind="base", part="test")
    own = records.find(kind="own", part="test")
    if base is None or own is None:
        raise ValueError(f"{records.path}: no references; python -m experiments.run")
    tasks, alone = list(own["accuracy"]), own["accuracy"]
    methods = dict.fromkeys(row["method"] for row in records.all(kind="choice"))
    rows = {method: rows_on_test(records, method) for method in methods}
    lines = [_line(method, x, alone, records) for method, x in rows.items() if x]
    lines.sort(key=lambda line: -line.mean)
    known = unpacked(own["hits"])
    best = lines[0].answers if lines else ()
    unmerged = _line("Base, no adapter", [base | {"candidate": {}}], alone, records)
    unmerged, *lines = (
        line._replace(behind=difference(line.answers, best, known))
        for line in (unmerged, *lines)
    )
    return tasks, unmerged, lines


def _line(
    method: str, rows: list[dict[str, Any]], own: dict[str, float], records: Records
) -> Line:
    accuracy = 100 * np.array([[row["accuracy"][task] for task in own] for row in rows])
    normalised = accuracy / np.array(list(own.values()))[None]
    means = normalised.mean(axis=1)
    candidate = rows[0]["candidate"]
    chosen = candidate.get("pipeline") or _fit_text(candidate)
    timed = records.all(kind="fit", method=method) or records.all(
        kind="merge", method=method
    )
    return Line(
        method,
        normalised.mean(axis=0),
        float(means.mean()),
        float(means.std(ddof=1)) if len(means) > 1 else None,
        float(accuracy.mean()),
        max((row["seconds"] for row in timed), default=0.0),
        chosen,
        answers=tuple(unpacked(row["hits"]) for row in rows),
    )


def _fit_text(candidate: dict[str, Any]) -> str:
    if not candidate:
        return ""
    return f"rate {candidate['rate']:g}, {candidate['steps']} steps"


def markdown(
    tasks: Sequence[str], base: Line, lines: Sequence[Line], *, brief: bool = False
) -> str:
    """The table as Markdown, base first, then from best to worst.

    ``brief`` leaves out what was chosen and the seconds.
    """
    measured = [*tasks, "mean", "from the best [95 %]", "mean accuracy"]
    head = ["method", *(f"{column}>" for column in measured)]
    head += [] if brief else ["chosen on validation", "s>"]
    rows = []
    for line in (base, *lines):
        spread = "" if line.spread is None else f" ± {line.spread:.1f}"
        rows.append(
            [
                line.method,
                *(f"{value:.1f}" for value in line.normalised),
                f"**{line.mean:.1f}**{spread}",
                _behind(line),
                f"{line.accuracy:.1f}",
                f"`{line.chosen}`" if line.chosen else "",
                f"{line.seconds:.0f}",
            ]
        )
    return markdown_table(head, [row[: len(head)] for row in rows])


def _behind(line: Line) -> str:
    if line.behind is None or line.behind == (0, 0, 0):
        return ""
    return line.behind.shown()


def draw(
    path: Path,
    tasks: Sequence[str],
    base: Line,
    lines: Sequence[Line],
    *,
    axis: str = "accuracy on test, in % of the task's own adapter",
) -> None:
    """Bars of the means, with a dot for every task; ``axis`` says what they are."""
    shown = [*reversed(lines), base]
    figure = Figure(figsize=(8, 0.34 * len(shown) + 1.2), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(shown))
    means = [line.mean for line in shown]
    spreads = [line.spread or 0 for line in shown]
    axes.barh(places, means, xerr=spreads, color="#c9d7ea", height=0.7)
    for index, task in enumerate(tasks):
        dots = [line.normalised[index] for line in shown]
        axes.plot(dots, places, "o", markersize=4, label=task)
    axes.set_yticks(places, [line.method for line in shown])
    axes.set_xlabel(axis)
    axes.legend(fontsize=7, loc="lower left", ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main(
    name: Annotated[str, typer.Argument(help="folder in experiments")],
    brief: Annotated[bool, typer.Option(help="print fewer columns")] = False,
) -> None:
    """Writes table and plot of one experiment, and prints the table."""
    folder = HERE / name / "results"
    tasks, base, lines = read_lines(Records(folder / "merging.jsonl"))
    text = markdown(tasks, base, lines)
    (folder / "merging.md").write_text(text, encoding="utf-8")
    draw(folder / "merging.png", tasks, base, lines)
    print(markdown(tasks, base, lines, brief=brief))


if __name__ == "__main__":
    typer.run(main)
