"""Plots of how the losses react to the directions of adapters."""

from typing import TYPE_CHECKING

import numpy as np

from jaxmerge.reports.comparison import shown
from jaxmerge.reports.drawing import curves, heat_map
from jaxmerge.reports.plots import Plot, layers

if TYPE_CHECKING:
    from jaxmerge.diagnostics.reactions import Reactions


def reaction_plots(found: "Reactions") -> list[Plot]:
    """Anisotropy and misalignment, as TARA shows them."""
    return [_anisotropy(found), _concentration(found), _by_layer(found), _apart(found)]


def _anisotropy(found: "Reactions") -> Plot:
    title = "Singular values of the task-direction Jacobian"
    values = found.singular_values
    says = f"condition number {found.condition:.2f}"
    if found.rank < len(found.tasks):
        says = f"rank {found.rank} of {len(found.tasks)}"
    alt = f"{title}: {values[0]:.2g} down to {values[-1]:.2g}, {says}."
    draw = curves({"J": values}, x="number", y="singular value")
    return Plot("anisotropy", title, "TARA's figure of anisotropy", alt, draw)


def _concentration(found: "Reactions") -> Plot:
    """Cumulative shares; of the single tasks the one that is most uneven."""
    title = "Sensitivity in the directions that matter most"
    most = int(np.argmax(found.top_tenth[: len(found.tasks)]))
    shares = np.cumsum(found.shares, axis=1)
    names = found.preferences
    values = {
        names[-1]: shares[-1],
        f"{names[most]} alone": shares[most],
        "if all mattered alike": np.arange(1, shares.shape[1] + 1) / shares.shape[1],
    }
    tenth = found.top_tenth
    alt = (
        f"{title}. The largest tenth of the {shares.shape[1]} directions has "
        f"{tenth[-1]:.2f} of the sum under equal weights, {tenth[most]:.2f} for "
        f"{names[most]} alone; {found.tenth / shares.shape[1]:.2f} if all mattered "
        "alike."
    )
    draw = curves(values, x="direction", y="share of Σ |h|")
    return Plot("sensitivity", title, "TARA's figure of anisotropy", alt, draw)


def _by_layer(found: "Reactions") -> Plot:
    title = "Where the sensitivity is, share of its square by layer"
    groups = layers(list(found.modules))
    energy = found.sensitivities**2
    parts = np.array(
        [
            sum(energy[:, found.modules[name]].sum(axis=1) for name in group)
            for group in groups.values()
        ]
    ).T
    total = parts.sum(axis=1, keepdims=True)
    parts = parts / np.where(total > 0, total, 1)
    largest = list(groups)[int(parts[-1].argmax())]
    most = float(parts[-1].max())
    alt = f"{title}. With equal weights most is in layer {largest}, {most:.2f}."
    draw = heat_map(parts, found.preferences, columns=list(groups))
    return Plot("sensitivity_by_layer", title, "TARA's sensitivity h", alt, draw)


def _apart(found: "Reactions") -> Plot:
    title = "Misalignment of preferences"
    names, values = found.preferences, found.misalignment.copy()
    np.fill_diagonal(values, np.nan)
    pairs = [
        f"{names[i]} and {names[j]} {shown(values[i, j])}"
        for i, j in zip(*np.triu_indices(len(names), 1), strict=True)
    ]
    draw = heat_map(values, names, harm=True)
    alt = f"{title}: {', '.join(pairs)}."
    return Plot("misalignment", title, "TARA's figure of misalignment", alt, draw)
