"""What compressed adapters lose, against what they store, as a plot."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxmerge.io.staging import staged_file
from jaxmerge.reports.drawing import render

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from jaxmerge.reports.drawing import Theme


def write_memory_plot(points: Sequence[tuple[float, float, float]], path: Path) -> None:
    """Errors of the adapters against the share of their numbers that is stored.

    Args:
      points: share, error of all adapters and error of the worst, for each number of
        components.
      path: file to write, as PNG.
    """
    share, error, worst = np.array(points).T

    def draw(axes: "Axes", theme: "Theme") -> None:
        for values, label, dash, colour in (
            (error, "all adapters", "-", theme.lines[0]),
            (worst, "the worst adapter", "--", theme.lines[1]),
        ):
            axes.plot(
                share, values, dash, color=colour, label=label, marker="o", markersize=4
            )
        for place, (x, y) in enumerate(zip(share, error, strict=True), start=1):
            axes.annotate(str(place), (x, y), xytext=(4, 4), textcoords="offset points")
        axes.set(
            xlabel="numbers stored, of those of the adapters",
            ylabel="relative error of the updates",
            ylim=(0, None),
        )
        axes.legend(frameon=False, labelcolor=theme.ink, fontsize=8)

    with staged_file(path) as staged:
        staged.write_bytes(render(draw))
