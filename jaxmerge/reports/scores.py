"""An evaluation as people look at it: a table and a plot."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxmerge.refusals import Option, Refusal
from jaxmerge.reports.tables import table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from jaxmerge.diagnostics.evaluation import Evaluation, Interval
    from jaxmerge.diagnostics.text_evaluation import TextEvaluation
    from jaxmerge.reports.drawing import Theme

_COLUMNS = (
    *("task", "rows>", "base>", "own adapter>", "merge>"),
    *("merge / own>", "95 % interval>", "agree>"),
)
_TEXT_COLUMNS = (
    *("task", "rows>", "tokens>", "base>", "own adapter>", "merge>"),
    *("gain kept>", "95 % interval>"),
)
_EXACT_COLUMNS = ("exact completions", "base>", "own adapter>", "merge>")


def evaluation(found: "Evaluation | TextEvaluation") -> Iterator[Any]:
    """Lines and a rich table for a terminal."""
    from jaxmerge.diagnostics.evaluation import Evaluation

    of_classes = isinstance(found, Evaluation)
    yield from _of_classes(found) if of_classes else _of_texts(found)


def _of_texts(found: "TextEvaluation") -> Iterator[Any]:
    nats = "{:.4f}".format
    rows: list[tuple[Any, ...]] = [
        (task, x.rows, x.tokens, *map(nats, x.nats), *_apart(x.kept))
        for task, x in found.tasks.items()
    ]
    rows.append(("mean", *[""] * 5, *_apart(found.mean_kept)))
    yield table(_TEXT_COLUMNS, rows)
    yield "base, own adapter and merge in nats per token"
    exact = [
        (task, *map(share, x.exact))
        for task, x in found.tasks.items()
        if x.exact.base is not None
    ]
    if exact:
        yield ""
        yield table(_EXACT_COLUMNS, exact)
        yield "exact: greedy decoding gives the whole completion, and ends"


def _apart(kept: "Interval | None") -> tuple[str, str]:
    return ("-", "-") if kept is None else (f"{kept.value:.1%}", _range(kept))


def share(found: "Interval | None") -> str:
    """A share with its interval, in one cell."""
    return "-" if found is None else f"{found.value:.1%} ({_range(found)})"


def _of_classes(found: "Evaluation") -> Iterator[Any]:
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


def write_plot(found: "Evaluation | TextEvaluation", path: Path) -> None:
    """What the merge keeps of every own adapter, with its interval, and the base."""
    from jaxmerge.diagnostics.evaluation import Evaluation
    from jaxmerge.io.staging import staged_file
    from jaxmerge.reports.drawing import render

    if isinstance(found, Evaluation):
        shares = {task: x.normalised for task, x in found.tasks.items()}
        base = [x.base / x.own if x.own else 0.0 for x in found.tasks.values()]
        label = "merge / own adapter, %"
    else:
        kept = {task: x.kept for task, x in found.tasks.items()}
        shares = {task: x for task, x in kept.items() if x is not None}
        base, label = [0.0] * len(shares), "gain of the own adapter that is kept, %"
    with staged_file(path) as staged:
        staged.write_bytes(render(_draw(shares, base, label)))


def _range(interval: "Interval") -> str:
    return f"{interval.low:.1%} to {interval.high:.1%}"


def _draw(shares: Mapping[str, "Interval"], base: Sequence[float], label: str):
    def draw(axes: "Axes", theme: "Theme") -> None:
        places, found = range(len(shares)), shares.values()
        values = [100 * x.value for x in found]
        reach = [
            [100 * (x.value - x.low) for x in found],
            [100 * (x.high - x.value) for x in found],
        ]
        axes.barh(places, values, color=theme.lines[0], xerr=reach, ecolor=theme.ink)
        marks = [100 * x for x in base]
        axes.scatter(marks, places, color=theme.lines[1], zorder=3, label="base")
        axes.axvline(100, color=theme.faint, linewidth=0.8)
        axes.set_yticks(list(places), list(shares))
        axes.invert_yaxis()
        axes.set_xlabel(label)
        axes.legend(frameon=False, labelcolor=theme.ink)

    return draw
