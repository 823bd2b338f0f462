"""Tables of how the losses react to the directions of adapters."""

from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmerge.reports.comparison import shown
from jaxmerge.reports.tables import table

if TYPE_CHECKING:
    from jaxmerge.diagnostics.reactions import Reactions

PREFERENCE_COLUMNS = (
    *("preference", "entropy", "alone", "slope", "sensitivity", "largest tenth"),
    "misaligned with itself",
)


def heading(found: "Reactions") -> str:
    """A heading that says what was measured, on how many inputs."""
    fewest, most = min(found.inputs.values()), max(found.inputs.values())
    count = f"{most}" if fewest == most else f"{fewest} to {most}"
    return (
        f"reactions of the losses, {count} inputs of each task, all coefficients "
        f"{found.initial:g}"
    )


def preference_rows(found: "Reactions") -> list[tuple[str, *tuple[float | None, ...]]]:
    """The values of `PREFERENCE_COLUMNS`; None where there is none."""
    of_tasks = np.stack([found.losses, found.anchors, found.slopes], axis=1).tolist()
    of_all = np.stack([found.sizes, found.top_tenth, found.repeat], axis=1).tolist()
    return [
        (name, *(None if value != value else value for value in (*first, *second)))
        for name, first, second in zip(
            *(found.preferences, [*of_tasks, [None] * 3], of_all), strict=True
        )
    ]


def preference_table(found: "Reactions") -> Any:
    """A table of how the objective reacts under each preference, and how unevenly."""
    first, *others = PREFERENCE_COLUMNS
    return table(
        (first, *(f"{column}>" for column in others)),
        [(name, *map(digits, numbers)) for name, *numbers in preference_rows(found)],
    )


def misalignment_table(found: "Reactions") -> Any:
    """A table of the misalignment xi between every two preferences."""
    names = found.preferences
    return table(
        ("preference", *(f"{name}>" for name in names)),
        [
            (name, *("-" if i == j else shown(xi) for j, xi in enumerate(row)))
            for i, (name, row) in enumerate(
                zip(names, found.misalignment.tolist(), strict=True)
            )
        ],
    )


def digits(value: float | None) -> str:
    """Three digits, for numbers that may be small.

    >>> digits(0.0512), digits(1.5), digits(None)
    ('0.0512', '1.50', '-')
    """
    return "-" if value is None else f"{value:#.3g}"
