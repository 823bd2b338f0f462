"""Tables and numbers as people read them in a terminal."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.text import Text

_STYLES = {"none": "green", "some": "yellow", "high": "bold red"}
_GAP = 2  # columns between columns


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> "Columns":
    """A plain table; columns whose title ends with ``>`` are aligned to the right.

    What is too wide for the terminal stands below: no column is hidden, no title cut.
    """
    return Columns(columns, rows)


def coloured(text: str, harm: str) -> "Text":
    """Text in a terminal, in a colour that says how much harm it speaks of."""
    from rich.text import Text

    return Text(text, style=_STYLES[harm])


class Columns:
    """A table that rich can print, in several parts where there is little room.

    >>> from rich.console import Console
    >>> wide = table(("task", "rows>", "mean accuracy>"), [("cars", 8, 0.5)])
    >>> Console(width=16).print(wide)
    task  rows
    cars     8
    <BLANKLINE>
              mean
    task  accuracy
    cars       0.5
    """

    def __init__(self, columns: Sequence[str], rows: Iterable[Sequence[Any]]):
        self.right = [column.endswith(">") for column in columns]
        self.titles = [column.rstrip(">") for column in columns]
        self.rows = [[_as_text(cell) for cell in row] for row in rows]

    def __rich_console__(
        self, console: "Console", options: "ConsoleOptions"
    ) -> "RenderResult":
        cells = [self._widest(i) for i in range(len(self.titles))]
        whole = [max(w, len(t)) for w, t in zip(cells, self.titles, strict=True)]
        if sum(whole) + _GAP * (len(whole) - 1) <= options.max_width:
            yield self._part(range(len(whole)), whole)
            return
        words = [max(map(len, [*title.split(), ""])) for title in self.titles]
        narrow = [max(pair) for pair in zip(cells, words, strict=True)]
        first = min(narrow[0], max(options.max_width // 2, words[0]))
        narrow[0] = first
        part, used = [0], first
        for column in range(1, len(narrow)):
            if len(part) > 1 and used + _GAP + narrow[column] > options.max_width:
                yield self._part(part, narrow)
                yield ""
                part, used = [0], first
            part.append(column)
            used += _GAP + narrow[column]
        yield self._part(part, narrow)

    def _widest(self, column: int) -> int:
        return max((row[column].cell_len for row in self.rows), default=0)

    def _part(self, columns: Sequence[int], widths: Sequence[int]) -> Any:
        from rich.table import Table

        made = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            justify = "right" if self.right[column] else "left"
            made.add_column(
                self.titles[column],
                justify=justify,
                width=widths[column],
                overflow="fold",
            )
        for row in self.rows:
            made.add_row(*(row[column] for column in columns))
        return made


def _as_text(cell: Any) -> "Text":
    from rich.text import Text

    return cell if isinstance(cell, Text) else Text(str(cell))


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
