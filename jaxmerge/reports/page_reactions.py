"""The part of the report that needs the base model: reactions of the losses."""

import math
from html import escape
from typing import TYPE_CHECKING

from jaxmerge.reports.page_blocks import Cell, Row, numbers, table
from jaxmerge.reports.reaction_tables import PREFERENCE_COLUMNS, digits, preference_rows

if TYPE_CHECKING:
    from jaxmerge.diagnostics.reactions import Reactions

MEANINGS = (
    (
        "entropy, alone",
        "Mean entropy of the predictions of a task in nats: of the merge in which "
        "every direction b aᵀ of every adapter has the same coefficient, and of the "
        "model with the task's own adapter alone.",
    ),
    (
        "slope",
        "Norm of the task's row of J, J<sub>tk</sub> = ∂f<sub>t</sub>/∂φ<sub>k</sub> = "
        "⟨∂f<sub>t</sub>/∂W, b<sub>k</sub> a<sub>k</sub>ᵀ⟩: the fastest that its "
        "entropy can change with the coefficients (arXiv 2603.26299).",
    ),
    (
        "condition number",
        "Largest over smallest singular value of J: how much more the entropies "
        "change for one step of the coefficients than for another of the same size. "
        "None where the rank of J is below the number of tasks: the entropies cannot "
        "move independently.",
    ),
    (
        "sensitivity",
        "Norm of h(&rho;) = Jᵀ ∂ψ/∂f, the gradient in the coefficients of the "
        "objective ψ (smooth Tchebycheff) under the preference &rho;: all weight on "
        "one task, or all tasks alike.",
    ),
    (
        "largest tenth",
        "Share of Σ |h| in the tenth of the directions (rounded up) where |h| is "
        "largest: one tenth, as rounded, if all directions mattered alike.",
    ),
    (
        "misalignment",
        "1 &minus; |cos(h(&rho;₁), h(&rho;₂))|: 0 if two preferences call for the same "
        "directions, 1 if what one calls for does nothing for the other.",
    ),
    (
        "misaligned with itself",
        "The same between one half of the inputs and the other under one preference: "
        "what chance alone gives, with half of the inputs. None where there are too "
        "few for halves.",
    ),
)


def reactions_part(found: "Reactions") -> str:
    """The part of the page on reactions: single numbers and two tables."""
    named = (
        ("rank of J", found.rank),
        ("condition number", _finite(found.condition)),
        ("misalignment, mean of tasks", _finite(found.mean_misalignment)),
        ("inputs of each task, at least", min(found.inputs.values())),
        ("coefficients", found.initial),
    )
    notes = "".join(f"<p>{escape(note)}</p>\n" for note in found.notes)
    rows: list[Row] = [
        (name, *map(_number, values)) for name, *values in preference_rows(found)
    ]
    names = found.preferences
    apart: list[Row] = [
        (name, *(None if i == j else xi for j, xi in enumerate(row)))
        for i, (name, row) in enumerate(
            zip(names, found.misalignment.tolist(), strict=True)
        )
    ]
    return (
        f"{numbers(named)}\n{notes}<h3>Preferences</h3>\n"
        f"{table('preferences', PREFERENCE_COLUMNS, rows)}\n"
        "<h3>Misalignment</h3>\n"
        f"{table('misalignment', ('preference', *names), apart)}"
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(value: float | None) -> Cell:
    return None if value is None else (digits(value), value)
