"""What commands print: results on stdout, progress on stderr."""

import json
import math
import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from jaxmerge.processes import writes

_WIDTH_OF_FILES = 200  # columns, where stdout is not a terminal


class Result(Protocol):
    """What the functions of the library give."""

    def to_json(self) -> dict[str, Any]: ...


Found = TypeVar("Found", bound=Result)


@dataclass(frozen=True)
class Console:
    """Where and how much a command prints.

    Attributes:
      as_json: one JSON document instead of text.
      quiet: nothing but errors (and the JSON document).
    """

    as_json: bool = False
    quiet: bool = False

    def show(self, found: Found, lines: Callable[[Found], Iterable[Any]]) -> None:
        """Prints a result of the library: as JSON, or as lines for people."""
        self.result(found.to_json(), lambda: lines(found))

    def result(self, document: Any, text: Callable[[], Iterable[Any]]) -> None:
        """Prints what the command found, once.

        Args:
          document: as JSON values.
          text: gives lines and rich tables, for people.
        """
        if not writes():  # another process tells it
            return
        if self.as_json:
            print(json.dumps(_finite(document), indent=2, allow_nan=False))
        elif not self.quiet:
            from rich.text import Text

            from jaxmerge.cli.terminal import PlainConsole

            width = None if sys.stdout.isatty() else _WIDTH_OF_FILES
            console = PlainConsole(width=width, highlight=False)
            for part in text():
                whole = not console.is_terminal and isinstance(part, str | Text)
                console.print(part, markup=False, soft_wrap=whole)

    @contextmanager
    def progress(
        self, title: str, total: int
    ) -> Generator[Callable[..., None], None, None]:
        """A progress bar on stderr; gives what advances it: ``(steps, title=None)``.

        Where nothing moves for a while it says that programs are compiled, or how long
        what is left will take. Silent with --quiet, with --json, or where stderr is not
        a terminal.
        """
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        from jaxmerge.cli.terminal import PlainConsole
        from jaxmerge.cli.waiting import Waiting

        told = self.as_json or self.quiet or not writes()
        silent = told or not sys.stderr.isatty()
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
            Waiting(),
            console=PlainConsole(stderr=True),
            transient=True,
            disable=silent,
        ) as bar:
            task = bar.add_task(title, total=total)
            yield lambda steps=1, title=None: bar.update(
                task, advance=steps, description=title
            )


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value
