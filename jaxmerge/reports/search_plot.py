"""What a search over merges has tried, as a plot."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxmerge.io.staging import staged_file
from jaxmerge.reports.drawing import Draw, render
from jaxmerge.spec.pipeline import parse
from jaxmerge.spec.varied import Varied
from jaxmerge.tuning.trace import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from jaxmerge.reports.drawing import Theme

_DASHES = ("-", "--", ":", "-.")


def write_search_plot(
    rows: Sequence[Row], pipelines: Sequence[Varied], score: str, path: Path
) -> None:
    """Score against the number that is searched, or the count if there are several.

    Args:
      rows: what was tried.
      pipelines: that were searched.
      score: name of the score.
      path: file to write, as PNG.
    """
    scored = [row for row in rows if row.scored.score is not None]
    alone = all(len(pipeline.ranges) == 1 for pipeline in pipelines)
    plain = not any(row.point.left_out for row in rows)
    plain = plain and len({row.point.weights for row in rows}) < 2
    curves = alone and plain
    draw = _curves(scored, pipelines, score) if curves else _course(scored, score)
    with staged_file(path) as staged:
        staged.write_bytes(render(draw))


def _curves(rows: Sequence[Row], pipelines: Sequence[Varied], score: str) -> Draw:
    """A curve for each pipeline, with bars where there are several seeds."""

    def draw(axes: "Axes", theme: "Theme") -> None:
        for place, varied in enumerate(pipelines):
            found = ((varied.values_in(parse(row.point.pipeline)), row) for row in rows)
            points = sorted(
                (float(values[-1]), float(row.scored.score), row.scored.spread or 0.0)
                for values, row in found
                if values is not None and row.scored.score is not None
            )
            if not points:
                continue
            x, y, spread = np.array(points).T
            axes.errorbar(
                *(x, y),
                yerr=spread if spread.any() else None,
                label=_short(str(varied)),
                color=theme.lines[place % len(theme.lines)],
                linestyle=_DASHES[place // len(theme.lines) % len(_DASHES)],
                marker="o",
                markersize=4,
            )
        if all(varied.ranges[0].low > 0 for varied in pipelines):
            axes.set_xscale("log")
        names = dict.fromkeys(varied.ranges[0].name for varied in pipelines)
        axes.set(xlabel=", ".join(names), ylabel=_short(score))
        axes.legend(frameon=False, labelcolor=theme.ink, fontsize=8)

    return draw


def _course(rows: Sequence[Row], score: str) -> Draw:
    """Every score in the order of trying."""

    def draw(axes: "Axes", theme: "Theme") -> None:
        values = [float(row.scored.score or 0.0) for row in rows]
        axes.scatter(range(1, len(values) + 1), values, color=theme.lines[0], s=12)
        axes.set(xlabel="merges tried", ylabel=_short(score))

    return draw


def _short(text: str) -> str:
    return text if len(text) <= 48 else f"{text[:47]}…"
