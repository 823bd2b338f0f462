"""Tables in Markdown."""

from collections.abc import Iterable, Sequence

import numpy as np


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


def mean_and_spread(values: Sequence[float]) -> str:
    """A cell: the mean, and the standard deviation where there are several values.

    >>> mean_and_spread([]), mean_and_spread([1.0]), mean_and_spread([1.0, 3.0])
    ('', '1.0', '2.0 ± 1.4')
    """
    if not values:
        return ""
    spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread}"
