"""Tables and numbers as people read them in a terminal."""

from collections.abc import Iterable, Sequence
from typing import Any


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Any:
    """A plain table; columns whose title ends with ``>`` are aligned to the right."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        right = column.endswith(">")
        made.add_column(column.rstrip(">"), justify="right" if right else "left")
    for row in rows:
        made.add_row(*map(str, row))
    return made


def size(count: float) -> str:
    """A number of bytes as people read it.

    >>> size(3 * 2**20)
    '3.0 MiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def span(values: Iterable[float]) -> str:
    """Smallest and largest of some numbers.

    >>> span([4, 8, 8]), span([2.0]), span([])
    ('4..8', '2', '-')
    """
    found = sorted(values)
    if not found:
        return "-"
    low, high = f"{found[0]:.4g}", f"{found[-1]:.4g}"
    return low if low == high else f"{low}..{high}"
