"""A console on which nothing that comes from a file is an instruction."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions
from rich.segment import Segment
from rich.text import Text

from jaxmerge.untrusted.text import shown


class PlainConsole(Console):
    """Rich's console, which spells out control characters instead of obeying them.

    Its own colours and moves of the cursor are not part of any text.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """Also measures what is shown, such as cells of tables."""
        return super().render_str(shown(text), **options)

    def render(
        self, renderable: Any, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else shown(text), style, control)
