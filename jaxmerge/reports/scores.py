"""An evaluation as people look at it: a table and a plot."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxmerge.refusals import Option, Refusal
from jaxmerge.reports.tables import table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from jaxmerge.diagnostics.evaluation import Evaluation, Interval
    from jaxmerge.reports.drawing import Theme

_COLUMNS = (
    *("task", "rows>", "base>", "own adapter>", "merge>"),
    *("merge / own>", "95 % interval>", "agree>"),
)


def evaluation(found: "Evaluation") -> Iterator[Any]:
    """Lines and a rich table for a terminal."""
    percent = "{:.1%}".format
    rows: list[tuple[Any, ...]] = [
        (
            *(task, x.rows, percent(x.base), percent(x.own), percent(x.merged)),
            *(percent(x.normalised.value), _range(x.normalised), percent(x.agreement)),
        )
        for task, x in found.tasks.items()
    ]
    mean = found.mean_normalised
    rows.append(("mean", *[""] * 4, percent(mean.value), _range(mean), ""))
    yield table(_COLUMNS, rows)
    yield f"base / own adapter, mean over the tasks: {percent(found.mean_base)}"


def check_plot(path: Path | None, *, force: bool) -> None:
    """Refuses, before any work, a plot that could not be written in the end."""
    if path is None:
        return
    from jaxmerge.reports.drawing import require_matplotlib

    require_matplotlib()
    if path.is_dir():
        raise Refusal(f"{path} is a folder; ", Option("plot"), " takes a file")
    if path.exists() and not force:
        raise Refusal(f"{path} exists already; pass ", Option("force"), " or another")


def write_plot(found: "Evaluation", path: Path) -> None:
    """Accuracy of every task: base, own adapter, and the merge with its interval."""
    from jaxmerge.io.staging import staged_file
    from jaxmerge.reports.drawing import render

    with staged_file(path) as staged:
        staged.write_bytes(render(_draw(found)))


def _range(interval: "Interval") -> str:
    return f"{interval.low:.1%} to {interval.high:.1%}"


def _draw(found: "Evaluation"):
    def draw(axes: "Axes", theme: "Theme") -> None:
        names, tasks = list(found.tasks), list(found.tasks.values())
        places = range(len(names))
        values = [100 * x.normalised.value for x in tasks]
        reach = [
            [100 * (x.normalised.value - x.normalised.low) for x in tasks],
            [100 * (x.normalised.high - x.normalised.value) for x in tasks],
        ]
        axes.barh(places, values, color=theme.lines[0], xerr=reach, ecolor=theme.ink)
        base = [100 * x.base / x.own if x.own else 0.0 for x in tasks]
        axes.scatter(base, places, color=theme.lines[1], zorder=3, label="base")
        axes.axvline(100, color=theme.faint, linewidth=0.8)
        axes.set_yticks(list(places), names)
        axes.invert_yaxis()
        axes.set_xlabel("merge / own adapter, %")
        axes.legend(frameon=False, labelcolor=theme.ink)

    return draw
