"""The report as one HTML page that needs no other file and no network."""

import base64
import itertools
from collections.abc import Iterable, Sequence
from html import escape

from jaxmerge import __version__
from jaxmerge.cli.comparison import CELLS, shown
from jaxmerge.cli.console import span
from jaxmerge.cli.drawing import DARK, LIGHT, Theme, render
from jaxmerge.cli.findings import Findings
from jaxmerge.cli.page_parts import SCRIPT, STYLE
from jaxmerge.cli.plots import Plot, layers, plots_of
from jaxmerge.cli.spectra import TaskSummary
from jaxmerge.cli.verdict import of_pair

Row = Sequence[str | float | None]

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
        "B stable rank",
        "Σ s² / max s² of all B side by side, before and after Pico's calibration. One "
        "over it is the share of energy in the most crowded output direction.",
    ),
)


def page(found: Findings, tasks: Sequence[TaskSummary], verdict: str) -> str:
    """The page.

    Args:
      found: diagnostics.
      tasks: what each adapter is.
      verdict: one line.
    """
    plots = plots_of(found)
    total = [(title, cell(found.total)) for title, cell in CELLS]
    names = escape(", ".join(found.tasks))
    sections = [
        _section("adapters", "Adapters", _table("adapters", *_adapters(tasks))),
        _section("total", "In total", _summary(total)),
        _section("pairs", "Pair by pair", _table("pairs", *_pairs(found))),
        _section("plots", "Plots", "".join(map(_figure, plots))),
        _section("modules", "Module by module", _table("modules", *_modules(found))),
        _section("meaning", "What the numbers mean", _meanings()),
    ]
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
<p class="verdict"><strong>Verdict</strong> {escape(verdict)}</p>
</header>
<main>
{"".join(sections)}</main>
<footer><p>jaxmerge {__version__}, jaxmerge inspect</p></footer>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _section(name: str, title: str, content: str) -> str:
    return (
        f'<section aria-labelledby="{name}-title">\n'
        f'<h2 id="{name}-title">{escape(title)}</h2>\n{content}\n</section>\n'
    )


def _summary(numbers: Iterable[tuple[str, float | None]]) -> str:
    items = "".join(
        f"<div><dt>{escape(title)}</dt><dd>{shown(value)}</dd></div>"
        for title, value in _named(numbers)
    )
    return f'<dl class="numbers">{items}</dl>'


def _named(
    numbers: Iterable[tuple[str, float | None]],
) -> list[tuple[str, float | None]]:
    """Titles that stand alone: 'random' after 'overlap B' becomes 'random B'."""
    named, last = [], ""
    for title, value in numbers:
        alone = {"random": f"random {last[-1:]}", "with pico": f"{last} with pico"}
        named.append((alone.get(title, title), value))
        last = title
    return named


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
            of_pair(pair),
        )
        for pair in found.pairs
    ]
    return (*columns, "sign conflict", "cosine", "says"), rows


def _modules(found: Findings) -> tuple[Sequence[str], list[Row]]:
    titles = [title for title, _ in _named((title, None) for title, _ in CELLS)]
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


def _table(caption: str, columns: Sequence[str], rows: Iterable[Row]) -> str:
    """A table that can be sorted by any column; it scrolls by itself on a phone."""
    head = "".join(
        f'<th scope="col"><button type="button">{escape(column)}</button></th>'
        for column in columns
    )
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>\n" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}">'
        f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def _cell(value: str | float | None) -> str:
    if isinstance(value, str):
        return f"<td>{escape(value)}</td>"
    text = f"{value:.0f}" if isinstance(value, float) and value.is_integer() else None
    sorted_by = "" if value is None else f' data-value="{value:.9g}"'
    return f'<td class="number"{sorted_by}>{text or shown(value)}</td>'


def _figure(plot: Plot) -> str:
    return (
        "<figure><picture>"
        f'<source media="(prefers-color-scheme: dark)" srcset="{_data(plot, DARK)}">'
        f'<img src="{_data(plot, LIGHT)}" alt="{escape(plot.alt)}" '
        'width="800" height="592">'
        f"</picture><figcaption><strong>{escape(plot.title)}</strong> "
        f"<span>compare {escape(plot.source)}</span></figcaption></figure>\n"
    )


def _data(plot: Plot, theme: Theme) -> str:
    encoded = base64.b64encode(render(plot.draw, theme)).decode("ascii")
    return f"data:image/png;base64,{encoded}"


def _meanings() -> str:
    items = "".join(f"<dt>{term}</dt><dd>{says}</dd>" for term, says in _MEANINGS)
    return f'<dl class="meanings">{items}</dl>'
