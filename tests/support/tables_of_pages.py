"""Tables of Markdown, as pages show them and as the experiments wrote them."""

import re

from documented import DOCS

EXPERIMENTS = DOCS.parent / "experiments"


def rows(text, head):
    """Titles and rows of the first table that begins so, as cells.

    A pipe in a cell stands behind a backslash.
    """
    titles, _, *lines = text[text.index(head) :].split("\n\n")[0].splitlines()
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in (titles, *lines)
    ]


def table(text, head):
    """The first table that begins so: name -> column -> cell."""
    titles, *lines = rows(text, head)
    return {line[0]: dict(zip(titles, line, strict=True)) for line in lines}


def measured(name):
    text = (EXPERIMENTS / name / "merging.md").read_text(encoding="utf-8")
    return table(text, "| method |")


def means(name):
    """method -> mean in per cent of the own adapters, with a spread if there is one."""
    rows = measured(f"{name}/results")
    column = "mean" if "mean" in rows["RegMean"] else "mean [95 %]"
    return {method: row[column].replace("**", "") for method, row in rows.items()}
