"""Diagnostics as plots: PNG, for light and for dark pages."""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmerge.cli.comparison import shown
from jaxmerge.cli.errors import CommandError
from jaxmerge.cli.findings import SHARE, Findings

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIZE, _DPI = (5.0, 3.7), 160  # inches; text stays readable on a page of 390 px
_TICKS = 8  # labels on an axis, at most
_LABELLED = 8  # tasks up to which every cell of a heat map has its number


@dataclass(frozen=True)
class Theme:
    """Colours of a plot; lines differ in their dashes too."""

    ground: str
    ink: str
    faint: str
    lines: tuple[str, ...]


LIGHT = Theme("#ffffff", "#1c2530", "#d5dbe1", ("#0060a8", "#c14a00", "#5f6b76"))
DARK = Theme("#161b22", "#e3e8ee", "#3a434e", ("#6cb6ff", "#ffa657", "#a3adb8"))
_ON_CELLS = ("#f4f6f8", "#101418")  # on dark and on bright cells
_DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)))


@dataclass(frozen=True)
class Plot:
    """One plot.

    Attributes:
      name: of its file, without ``.png``.
      title: what it shows.
      source: the paper's figure that it corresponds to.
      alt: its content in words, with numbers.
      draw: draws it.
    """

    name: str
    title: str
    source: str
    alt: str
    draw: Callable[["Axes", Theme], None]


def require_matplotlib() -> None:
    """Refuses with a remedy where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise CommandError(
            "plots and pages need matplotlib; "
            "install it with pip install 'jaxmerge[demo]'"
        ) from error


def render(plot: Plot, theme: Theme = LIGHT) -> bytes:
    """The plot as PNG; the same bytes for the same numbers."""
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
    plot.draw(axes, theme)
    buffer = io.BytesIO()
    figure.savefig(
        buffer, format="png", facecolor=theme.ground, metadata={"Software": None}
    )
    return buffer.getvalue()


def plots_of(found: Findings) -> list[Plot]:
    """All plots of some adapters."""
    b = _over_modules(found, lambda d: d.overlaps.b)
    a = _over_modules(found, lambda d: d.overlaps.a)
    top = max(_largest(b), _largest(a))  # one scale, so that the two can be compared
    return [
        _effective_ranks(found),
        _overlap_by_layer(found),
        _heat_map(
            found,
            name="overlap_b",
            title="Overlap of outputs (B), pair by pair",
            source="Pico's heat maps of overlap, B",
            values=b,
            top=top,
        ),
        _heat_map(
            found,
            name="overlap_a",
            title="Overlap of inputs (A), pair by pair",
            source="Pico's heat maps of overlap, A",
            values=a,
            top=top,
        ),
        _spectrum(found),
        _energy(found),
        _heat_map(
            found,
            name="sign_conflict",
            title="Entries with opposite signs, pair by pair",
            source="TIES' figure of sign conflicts",
            values=_of_pairs(found, "sign_conflict"),
        ),
        _heat_map(
            found,
            name="cosine",
            title="Cosine of the updates, pair by pair",
            source="the figure of cosines in task arithmetic",
            values=_of_pairs(found, "cosine"),
        ),
    ]


def layers(names: Sequence[str]) -> dict[str, list[str]]:
    """Modules by layer, in the order of the numbers in their names.

    >>> layers(["h.10.q", "h.2.q", "h.2.v"])
    {'2': ['h.2.q', 'h.2.v'], '10': ['h.10.q']}
    """
    groups: dict[tuple[str, int], list[str]] = {}
    for name in names:
        match = re.match(r"(.*?)(?:^|\.)(\d+)(?=\.|$)", name)
        groups.setdefault((match[1], int(match[2])) if match else (name, -1), [])
        groups[(match[1], int(match[2])) if match else (name, -1)].append(name)
    alone = len({prefix for prefix, number in groups if number >= 0}) <= 1
    return {
        prefix if number < 0 else str(number) if alone else f"{prefix}.{number}": group
        for (prefix, number), group in sorted(groups.items())
    }


def _effective_ranks(found: Findings) -> Plot:
    title = "Effective rank by layer"
    lines = {
        "sum over tasks": lambda x: x.sum_of_directions,
        "all directions": lambda x: x.directions,
        "updates": lambda x: x.updates,
    }
    total = found.total
    alt = (
        f"{title}. Mean over modules: {shown(total.sum_of_directions)} for the tasks' "
        f"directions added up, {shown(total.directions)} for all directions together, "
        f"{shown(total.updates)} for the stack of the {len(found.tasks)} updates."
    )
    return Plot(
        "effective_rank",
        title,
        "TARA's figure of subspace coverage",
        alt,
        _lines_by_layer(found, lines, "effective rank"),
    )


def _overlap_by_layer(found: Findings) -> Plot:
    title = "Overlap by layer, mean over pairs"
    lines = {
        "B": lambda x: x.overlap_b,
        "A": lambda x: x.overlap_a,
        "random": lambda x: (
            None if x.random_b is None else (x.random_b + x.random_a) / 2
        ),
    }
    total = found.total
    alt = (
        f"{title}. Mean over modules: {shown(total.overlap_b)} for B (random subspaces "
        f"{shown(total.random_b)}), {shown(total.overlap_a)} for A (random subspaces "
        f"{shown(total.random_a)})."
    )
    draw = _lines_by_layer(found, lines, "overlap")
    return Plot("overlap", title, "Pico's figure of overlap by layer", alt, draw)


def _lines_by_layer(found: Findings, lines: dict[str, Any], what: str) -> Callable:
    groups = layers(list(found.modules))

    def draw(axes: "Axes", theme: Theme) -> None:
        for index, (label, number) in enumerate(lines.items()):
            means = []
            for group in groups.values():
                values = [number(found.modules[name]) for name in group]
                present = [value for value in values if value is not None]
                means.append(np.mean(present) if present else np.nan)
            axes.plot(
                means,
                label=label,
                color=theme.lines[index],
                linestyle=_DASHES[index],
                linewidth=2,
                marker="o" if len(means) == 1 else None,
            )
        step = -(-len(groups) // _TICKS)
        axes.set_xticks(range(0, len(groups), step), list(groups)[::step])
        if max(map(len, groups)) > 3:
            axes.tick_params(axis="x", rotation=30)
        axes.set(xlabel="layer", ylabel=what, ylim=(0, None))
        _legend(axes, theme)

    return draw


def _spectrum(found: Findings) -> Plot:
    title = "Spectrum of stacked B, before and after calibration"

    def shares(when: str) -> np.ndarray:
        values = [getattr(d, when).values for d in found.arrays.values()]
        return _mean_of_ragged([v / (np.linalg.norm(v) or 1) for v in values])

    def draw(axes: "Axes", theme: Theme) -> None:
        for index, (when, label) in enumerate(
            [("before", "before"), ("after", "calibrated by Pico")]
        ):
            values = shares(when)
            axes.plot(
                np.arange(1, len(values) + 1),
                values,
                label=label,
                color=theme.lines[index],
                linestyle=_DASHES[index],
                linewidth=2,
            )
        axes.set(xlabel="direction", ylabel="singular value / norm", ylim=(0, None))
        _legend(axes, theme)

    before, after = found.total.before, found.total.after
    alt = (
        f"{title}. Effective rank {shown(before['effective_rank'])} before and "
        f"{shown(after['effective_rank'])} after, stable rank "
        f"{shown(before['stable_rank'])} and {shown(after['stable_rank'])}, condition "
        f"number {shown(before['condition'])} and {shown(after['condition'])}."
    )
    return Plot("spectrum", title, "Pico's spectrum of B", alt, draw)


def _energy(found: Findings) -> Plot:
    title = "Energy kept by truncation"
    of_sum = _mean_of_ragged([d.energy for d in found.arrays.values()], fill=1.0)
    single = [
        d.task_energy[t]
        for d in found.arrays.values()
        for t in range(len(found.tasks))
        if d.norms[t] > 0
    ]

    def draw(axes: "Axes", theme: Theme) -> None:
        curves = {"sum of the adapters": of_sum}
        if single:
            curves["one adapter"] = _mean_of_ragged(single, fill=1.0)
        for index, (label, values) in enumerate(curves.items()):
            axes.plot(
                np.arange(1, len(values) + 1),
                values,
                label=label,
                color=theme.lines[index],
                linestyle=_DASHES[index],
                linewidth=2,
            )
        axes.axhline(SHARE, color=theme.ink, linewidth=0.8, alpha=0.5)
        axes.set(xlabel="rank", ylabel="share of squared norm", ylim=(0, 1.02))
        _legend(axes, theme)

    alt = (
        f"{title}. Of the sum of the adapters rank 1 keeps {of_sum[0]:.0%}, and 90 % "
        f"need rank {shown(found.total.rank_for_share)} in the mean over modules."
    )
    return Plot("energy", title, "energy by rank, as in TSV-M and CtM", alt, draw)


def _heat_map(
    found: Findings,
    *,
    name: str,
    title: str,
    source: str,
    values: np.ndarray,
    top: float | None = None,
) -> Plot:
    tasks = found.tasks
    top = max(_largest(values) if top is None else top, 1e-3)
    low = min(float(np.nanmin(values, initial=0.0)), 0.0)

    def draw(axes: "Axes", theme: Theme) -> None:
        from matplotlib import colormaps

        colours = colormaps["cividis"].with_extremes(bad=theme.faint)
        image = axes.imshow(values, cmap=colours, vmin=low, vmax=top)
        axes.set_xticks(range(len(tasks)), [_short(t) for t in tasks], rotation=35)
        axes.set_yticks(range(len(tasks)), [_short(t) for t in tasks])
        for label in axes.get_xticklabels():
            label.set_horizontalalignment("right")
            label.set_rotation_mode("anchor")
        axes.tick_params(length=0, labelsize=10)
        for spine in axes.spines.values():
            spine.set_visible(False)
        if len(tasks) <= _LABELLED:
            for i, j in np.ndindex(values.shape):
                value = values[i, j]
                if np.isnan(value):
                    continue
                bright = (value - low) / (top - low) > 0.5
                axes.text(
                    j,
                    i,
                    f"{round(value, 2) + 0:.2f}",
                    ha="center",
                    va="center",
                    fontsize=11 if len(tasks) <= 5 else 9,
                    color=_ON_CELLS[bool(bright)],
                )
        bar = axes.figure.colorbar(image, ax=axes, shrink=0.9)
        bar.ax.tick_params(colors=theme.ink, labelsize=10)
        bar.outline.set_visible(False)

    pairs = [
        f"{tasks[i]} and {tasks[j]} {values[i, j]:.2f}"
        for i, j in zip(*np.triu_indices(len(tasks), 1), strict=True)
        if np.isfinite(values[i, j])
    ]
    return Plot(name, title, source, f"{title}: {', '.join(pairs) or 'none'}.", draw)


def _over_modules(found: Findings, matrix: Callable) -> np.ndarray:
    """Mean [T, T] over the modules that both tasks change; NaN on the diagonal."""
    values = np.array([matrix(d) for d in found.arrays.values()])
    there = np.array([d.overlaps.random_b > 0 for d in found.arrays.values()])
    there &= ~np.eye(len(found.tasks), dtype=bool)
    count = there.sum(axis=0)
    total = np.where(there, values, 0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _of_pairs(found: Findings, name: str) -> np.ndarray:
    values = np.full((len(found.tasks),) * 2, np.nan)
    for pair in found.pairs:
        i, j = (found.tasks.index(task) for task in pair.tasks)
        values[i, j] = values[j, i] = getattr(pair, name)
    return values


def _largest(values: np.ndarray) -> float:
    return float(np.nanmax(values, initial=0.0))


def _mean_of_ragged(rows: Sequence[np.ndarray], *, fill: float = 0.0) -> np.ndarray:
    width = max(map(len, rows))
    filled = [np.pad(r, (0, width - len(r)), constant_values=fill) for r in rows]
    return np.mean(filled, axis=0)


def _short(name: str) -> str:
    return name if len(name) <= 12 else f"{name[:11]}…"


def _legend(axes: "Axes", theme: Theme) -> None:
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
