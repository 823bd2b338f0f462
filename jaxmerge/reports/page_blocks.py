"""Parts of which the report is built: sections, numbers, tables and figures."""

import base64
from collections.abc import Iterable, Sequence
from html import escape

from jaxmerge.diagnostics.verdict import Said
from jaxmerge.reports.comparison import shown
from jaxmerge.reports.drawing import DARK, LIGHT, Theme, render
from jaxmerge.reports.plots import Plot

Cell = str | float | tuple[str, float] | Said | None  # a pair: text, sorted by number
Row = Sequence[Cell]


def section(name: str, title: str, content: str) -> str:
    """A part of the page with a heading."""
    return (
        f'<section aria-labelledby="{name}-title">\n'
        f'<h2 id="{name}-title">{escape(title)}</h2>\n{content}\n</section>\n'
    )


def verdict(title: str, said: Sequence[Said]) -> str:
    """The statements of a verdict under one title; nothing for none."""
    lines = "".join(
        f'<p class="harm-{entry.harm}">{escape(entry.text)}</p>\n' for entry in said
    )
    heading = f"<h2>{escape(title)}</h2>\n"
    return f'<div class="verdict">{heading}{lines}</div>\n' if lines else ""


def numbers(named: Iterable[tuple[str, float | None]]) -> str:
    """Single numbers with their names."""
    items = "".join(
        f"<div><dt>{escape(title)}</dt><dd>{_text(value)}</dd></div>"
        for title, value in named
    )
    return f'<dl class="numbers">{items}</dl>'


def table(caption: str, columns: Sequence[str], rows: Iterable[Row]) -> str:
    """A table that can be sorted by any column; on a phone each row is a card."""
    head = "".join(
        f'<th scope="col"><button type="button">{escape(column)}</button></th>'
        for column in columns
    )
    body = "".join(f"<tr>{''.join(map(_cell, columns, row))}</tr>\n" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}">'
        f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def figure(plot: Plot) -> str:
    """A plot for light and for dark pages, with its title."""
    return (
        "<figure><picture>"
        f'<source media="(prefers-color-scheme: dark)" srcset="{_data(plot, DARK)}">'
        f'<img src="{_data(plot, LIGHT)}" alt="{escape(plot.alt)}" '
        'width="800" height="592">'
        f"</picture><figcaption><strong>{escape(plot.title)}</strong> "
        f"<span>compare {escape(plot.source)}</span></figcaption></figure>\n"
    )


def meanings(items: Iterable[tuple[str, str]]) -> str:
    """Terms and what they mean; both are HTML already."""
    terms = "".join(f"<dt>{term}</dt><dd>{says}</dd>" for term, says in items)
    return f'<dl class="meanings">{terms}</dl>'


def _cell(column: str, value: Cell) -> str:
    label = f' data-label="{escape(column)}"'
    if isinstance(value, Said):
        said = f'<span class="harm-{value.harm}">{escape(value.text)}</span>'
        return f"<td{label}>{said}</td>"
    if isinstance(value, str):
        return f"<td{label}>{escape(value)}</td>"
    if value is None:
        return f'<td class="number"{label}>-</td>'
    text, number = value if isinstance(value, tuple) else (_text(value), value)
    return f'<td class="number"{label} data-value="{number:.9g}">{text}</td>'


def _text(value: float | None) -> str:
    """Whole numbers without digits after the point.

    >>> _text(64.0), _text(0.25), _text(None)
    ('64', '0.250', '-')
    """
    whole = value is not None and float(value).is_integer()
    return f"{value:.0f}" if whole else shown(value)


def _data(plot: Plot, theme: Theme) -> str:
    encoded = base64.b64encode(render(plot.draw, theme)).decode("ascii")
    return f"data:image/png;base64,{encoded}"
