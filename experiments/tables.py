"""Tables in Markdown."""

from collections.abc import Iterable, Sequence


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; columns whose title ends with ``>`` are aligned to the right.

    >>> print(markdown_table(["method", "mean>"], [["a|b", "0.5"]]), end="")
    | method | mean |
    | --- | ---: |
    | a\\|b | 0.5 |
    """
    head = [column.removesuffix(">") for column in columns]
    rule = ["---:" if column.endswith(">") else "---" for column in columns]
    body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, rule, *body))
