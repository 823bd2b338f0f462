"""The report as one HTML page that needs no other file and no network."""

import itertools
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from jaxmerge import __version__
from jaxmerge.diagnostics.findings import Findings
from jaxmerge.diagnostics.spectra import TaskSummary
from jaxmerge.diagnostics.verdict import said_of_pair
from jaxmerge.reports.comparison import CELLS
from jaxmerge.reports.page_blocks import (
    Row,
    figure,
    meanings,
    numbers,
    section,
    table,
    verdict,
)
from jaxmerge.reports.page_parts import SCRIPT, STYLE
from jaxmerge.reports.page_reactions import MEANINGS, reactions_part
from jaxmerge.reports.plots import Plot, layers
from jaxmerge.reports.tables import span

if TYPE_CHECKING:
    from jaxmerge.diagnostics.inspection import Inspection

_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'"
)
_MEANINGS = (
    (
        "own ranks, own directions",
        "Effective rank exp(-Σ p log p), p = s / Σ s, of every update, and of every "
        "task's stack of rank-1 directions; added up over the tasks. What the adapters "
        "have apart from each other (arXiv 2603.26299).",
    ),
    (
        "all directions, updates",
        "Effective rank of the directions of all tasks in one stack, and of the "
        "updates as single vectors. Much lower than the sum: the adapters say "
        "the same.",
    ),
    (
        "overlap",
        "‖QᵢᵀQⱼ‖² / min(rᵢ, rⱼ) of the column spaces of B (where adapters write to) or "
        "the row spaces of A (what they read): 0 orthogonal, 1 contained. Beside it "
        "what random subspaces of these ranks give, max(rᵢ, rⱼ) / dimension "
        "(arXiv 2604.16826).",
    ),
    (
        "sign conflict",
        "Share of entries where two updates have opposite signs; 0.5 for independent "
        "updates (arXiv 2306.01708).",
    ),
    ("cosine", "Of two updates; 0 where they add without interference."),
    (
        "norm ratio",
        "Norm of the sum over the mean norm of the single updates: √T for orthogonal "
        "updates of one norm, T for equal ones. Pico restores 1 after a merge.",
    ),
    (
        "rank for 90 %",
        "Smallest rank at which the sum of the adapters keeps 90 % of its squared "
        "norm.",
    ),
    (
        "B stable rank, with pico",
        "Σ s² / max s² of all B side by side, before and after Pico's calibration. One "
        "over it is the share of energy in the most crowded output direction.",
    ),
)


def page(inspected: "Inspection", plots: Sequence[Plot]) -> str:
    """The report as text of an HTML page.

    Args:
      inspected: of several adapters.
      plots: all of them.

    Raises:
      ValueError: nothing to compare, for one adapter or merged updates.
    """
    found, reactions = inspected.findings, inspected.reactions
    if found is None:
        raise ValueError("a page compares adapters, so it needs at least two")
    total = [(title, cell(found.total)) for title, cell in CELLS]
    names = escape(", ".join(found.tasks))
    terms, through_model = _MEANINGS, ""
    if reactions is not None:
        terms = (*_MEANINGS, *MEANINGS)
        content = reactions_part(reactions)
        through_model = section("reactions", "Through the base model", content)
    sections = [
        section("adapters", "Adapters", table("adapters", *_adapters(inspected.tasks))),
        section("total", "In total", numbers(total)),
        section("pairs", "Pair by pair", table("pairs", *_pairs(found))),
        through_model,
        section("plots", "Plots", "".join(map(figure, plots))),
        section("modules", "Module by module", table("modules", *_modules(found))),
        section("meaning", "What the numbers mean", meanings(terms)),
    ]
    said = verdict("Verdict", inspected.verdict)
    said += verdict("Verdict through the base model", inspected.verdict_on_reactions)
    said += "".join(f"<p>note: {escape(note)}</p>\n" for note in inspected.notes)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>Adapters before a merge: {names}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>Adapters before a merge</h1>
<p>{len(found.tasks)} adapters, {len(found.modules)} modules: {names}</p>
{said}</header>
<main>
{"".join(sections)}</main>
<footer><p>jaxmerge {__version__}, jaxmerge inspect</p></footer>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _adapters(tasks: Sequence[TaskSummary]) -> tuple[Sequence[str], list[Row]]:
    rows: list[Row] = [
        (
            task.name,
            task.base_model or "-",
            span(m.rank for m in task.modules.values() if m.rank is not None),
            float(len(task.modules)),
            task.norm,
        )
        for task in tasks
    ]
    return ("adapter", "base model", "ranks", "modules", "norm"), rows


def _pairs(found: Findings) -> tuple[Sequence[str], list[Row]]:
    columns = ("adapters", "overlap B", "random B", "overlap A", "random A")
    rows: list[Row] = [
        (
            " + ".join(pair.tasks),
            *(pair.overlap_b, pair.random_b, pair.overlap_a, pair.random_a),
            *(pair.sign_conflict, pair.cosine),
            said_of_pair(pair),
        )
        for pair in found.pairs
    ]
    return (*columns, "sign conflict", "cosine", "says"), rows


def _modules(found: Findings) -> tuple[Sequence[str], list[Row]]:
    titles = [title for title, _ in CELLS]
    stem = _common_stem(list(found.modules))
    rows: list[Row] = [
        (name.removeprefix(stem), *(cell(found.modules[name]) for _, cell in CELLS))
        for layer in layers(list(found.modules)).values()
        for name in layer
    ]
    return (f"module{f' of {stem[:-1]}' if stem else ''}", *titles), rows


def _common_stem(names: Sequence[str]) -> str:
    """What all names begin with, up to a dot.

    >>> _common_stem(["model.h.1.q", "model.h.10.q"])
    'model.h.'
    """
    levels = zip(*(name.split(".")[:-1] for name in names), strict=False)
    same = itertools.takewhile(lambda level: len(set(level)) == 1, levels)
    return "".join(f"{level[0]}." for level in same)
