"""Tables of Markdown, as pages show them and as the experiments wrote them."""

import re

from documented import DOCS

EXPERIMENTS = DOCS.parent / "experiments"


def cells(line):
    """Of a row of a table, in which a pipe may stand behind a backslash."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def table(text, head):
    """Rows of the first table that begins so: name -> column -> cell."""
    start = text.index(f"\n{head}") + 1
    lines = text[start:].split("\n\n")[0].splitlines()
    columns = cells(lines[0])
    rows = (dict(zip(columns, cells(line), strict=True)) for line in lines[2:])
    return {row[columns[0]]: row for row in rows}


def measured(name):
    text = (EXPERIMENTS / name / "merging.md").read_text(encoding="utf-8")
    return table(f"\n{text}", "| method |")


def means(name):
    """method -> mean in per cent of the own adapters, with a spread if there is one."""
    rows = measured(f"{name}/results")
    column = "mean" if "mean" in rows["RegMean"] else "mean [95 %]"
    return {method: row[column].replace("**", "") for method, row in rows.items()}
