"""What a progress bar says where nothing moves."""

from rich.progress import ProgressColumn, Task
from rich.table import Column
from rich.text import Text

from jaxmerge.runtime import compiling

PATIENCE = 2.0  # seconds


class Waiting(ProgressColumn):
    """Says that programs are compiled, or about how long the rest will take."""

    def __init__(self) -> None:
        super().__init__(Column(no_wrap=True))

    def render(self, task: Task) -> Text:
        left = None if task.finished else task.time_remaining
        return Text(waiting(task.elapsed or 0, left, compiling.seconds()))


def waiting(elapsed: float, left: float | None, compiled_for: float) -> str:
    """The words for one moment.

    Args:
      elapsed: seconds since the start.
      left: seconds that the rest will take; None where it is not known.
      compiled_for: seconds for which a program has been compiled, 0 for none.

    >>> waiting(5.0, None, 3.0), waiting(60.0, 120.0, 0.0)
    ('compiling (first run only)', 'about 0:02:00 left')
    >>> waiting(1.0, None, 0.0), waiting(9.0, None, 0.0)
    ('', 'working')
    """
    if compiled_for > PATIENCE:
        return "compiling (first run only)"
    if elapsed <= PATIENCE:
        return ""
    if left is None:
        return "working"
    seconds = int(left)
    return f"about {seconds // 3600}:{seconds % 3600 // 60:02d}:{seconds % 60:02d} left"
