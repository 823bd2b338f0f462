"""Curves and heat maps as PNG, for light and for dark pages."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np

from jaxmerge.refusals import Refusal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIZE, _DPI = (5.0, 3.7), 160  # inches; text stays readable on a page of 390 px
_TICKS = 8  # labels of layers, at most
_LABELLED = 8  # tasks up to which every cell of a heat map has its number


@dataclass(frozen=True)
class Theme:
    """Colours of a plot; curves differ in their dashes too.

    Attributes:
      harm: colours of a matrix, from what disturbs no merge to what disturbs it most.
    """

    ground: str
    ink: str
    faint: str
    lines: tuple[str, ...]
    harm: tuple[str, ...]


LIGHT = Theme(
    *("#ffffff", "#1c2530", "#d5dbe1"),
    lines=("#0060a8", "#c14a00", "#5f6b76"),
    harm=("#eef4ee", "#f6c9a0", "#e5703f", "#8f1420"),
)
DARK = Theme(
    *("#161b22", "#e3e8ee", "#3a434e"),
    lines=("#6cb6ff", "#ffa657", "#a3adb8"),
    harm=("#1d2b24", "#6b3d22", "#d9632f", "#ffb3a0"),
)
_ON_CELLS = ("#f4f6f8", "#101418")  # on dark and on bright cells
_BRIGHT = 0.4  # luminance
_DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)))

Draw = Callable[["Axes", Theme], None]


def require_matplotlib() -> None:
    """Refuses with a remedy where matplotlib is not installed."""
    try:
        import_module("matplotlib")
    except ModuleNotFoundError as error:
        raise Refusal(
            "plots and pages need matplotlib; "
            "install it with pip install 'jaxmerge[demo]'"
        ) from error


def render(draw: Draw, theme: Theme = LIGHT) -> bytes:
    """A plot as PNG of 800 x 592 pixels; the same bytes for the same numbers."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.set_facecolor(theme.ground)
    axes = figure.add_subplot()
    axes.set_facecolor(theme.ground)
    axes.tick_params(colors=theme.ink, labelsize=11)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=theme.ink, fontsize=11)
    for side, spine in axes.spines.items():
        spine.set_color(theme.faint)
        spine.set_visible(side in ("left", "bottom"))
    draw(axes, theme)
    buffer = io.BytesIO()
    figure.savefig(
        buffer, format="png", facecolor=theme.ground, metadata={"Software": None}
    )
    return buffer.getvalue()


def curves(
    values: Mapping[str, Sequence[float] | np.ndarray],
    *,
    x: str,
    y: str,
    names: Sequence[str] | None = None,
    level: float | None = None,
) -> Draw:
    """Up to three curves from 0 upwards.

    Args:
      values: label -> values.
      x: title of the axis.
      y: title of the axis.
      names: names of the points on the x axis; by default 1, 2, ..
      level: height of a thin line across.
    """

    def draw(axes: "Axes", theme: Theme) -> None:
        for (label, each), color, dashes in zip(
            values.items(), theme.lines, _DASHES, strict=False
        ):
            axes.plot(
                np.arange(len(each)) + (names is None),
                each,
                label=label,
                color=color,
                linestyle=dashes,
                linewidth=2,
                marker="o" if len(each) == 1 else None,
            )
        if names is not None:
            step = -(-len(names) // _TICKS)
            labels = [_end(name) for name in names][::step]
            axes.set_xticks(range(0, len(names), step), labels)
            if max(map(len, labels)) > 3:
                _slant(axes)
        if level is not None:
            axes.axhline(level, color=theme.ink, linewidth=0.8, alpha=0.5)
        axes.set(xlabel=x, ylabel=y, ylim=(0, None))
        axes.grid(axis="y", color=theme.faint, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.figure.legend(
            loc="outside upper left",
            ncols=3,
            frameon=False,
            labelcolor=theme.ink,
            fontsize=10.5,
            handlelength=1.6,
            columnspacing=1.2,
        )

    return draw


def heat_map(
    values: np.ndarray,
    names: Sequence[str],
    *,
    columns: Sequence[str] | None = None,
    harm: bool = False,
) -> Draw:
    """A matrix, with numbers in its cells while they fit.

    Args:
      values: NaN where there is nothing to show.
      names: of rows and, unless these have their own, of columns.
      columns: names of columns that are not those of the rows.
      harm: colours say how far a value is from 0, where nothing is disturbed, on a
        scale that ends at 1 for all plots; otherwise they end at the largest value.
    """
    top = 1.0 if harm else max(float(np.nanmax(values, initial=0.0)), 1e-3)
    square, columns = columns is None, names if columns is None else columns
    widest, step = max(map(len, (names, columns))), -(-len(columns) // (2 * _TICKS))

    def draw(axes: "Axes", theme: Theme) -> None:
        from matplotlib import colormaps
        from matplotlib.colors import LinearSegmentedColormap

        colours = colormaps["cividis"]
        if harm:
            colours = LinearSegmentedColormap.from_list("harm", theme.harm)
        image = axes.imshow(
            np.abs(values),
            cmap=colours.with_extremes(bad=theme.faint),
            vmin=0,
            vmax=top,
            aspect="equal" if square else "auto",
        )
        labels = [(_start if square else _end)(name) for name in columns]
        axes.set_xticks(range(len(columns))[::step], labels[::step])
        axes.set_yticks(range(len(names)), [_start(name) for name in names])
        if square or max(map(len, labels)) > 3:
            _slant(axes)
        axes.tick_params(length=0, labelsize=10)
        for spine in axes.spines.values():
            spine.set_visible(False)
        if widest <= _LABELLED:
            for i, j in np.argwhere(np.isfinite(values)):
                red, green, blue, _ = image.to_rgba(abs(values[i, j]))
                bright = 0.3 * red + 0.6 * green + 0.1 * blue > _BRIGHT
                axes.text(
                    j,
                    i,
                    f"{np.round(values[i, j], 2) + 0:.2f}",
                    ha="center",
                    va="center",
                    fontsize=11 if widest <= 5 else 9,
                    color=_ON_CELLS[bool(bright)],
                )
        bar = axes.figure.colorbar(image, ax=axes, shrink=0.9)
        bar.ax.tick_params(colors=theme.ink, labelsize=10)
        bar.outline.set_visible(False)

    return draw


def _start(name: str) -> str:
    return name if len(name) <= 12 else f"{name[:11]}…"


def _end(name: str) -> str:
    return name if len(name) <= 14 else f"…{name[-13:]}"


def _slant(axes: "Axes") -> None:
    for label in axes.get_xticklabels():
        label.set(rotation=35, horizontalalignment="right", rotation_mode="anchor")
