"""What a progress bar says where nothing moves."""

from rich.progress import ProgressColumn, Task
from rich.text import Text

from jaxmerge.runtime import compiling

PATIENCE = 2.0  # seconds


class Waiting(ProgressColumn):
    """Says that programs are compiled, or about how long the rest will take."""

    max_refresh = None

    def render(self, task: Task) -> Text:
        return Text(
            waiting(
                task.completed, task.total or 0, task.elapsed or 0, compiling.seconds()
            )
        )


def waiting(done: float, total: float, elapsed: float, compiled_for: float) -> str:
    """The words for one moment.

    Args:
      done: steps that are done.
      total: all steps.
      elapsed: seconds since the start.
      compiled_for: seconds for which a program has been compiled, 0 for none.

    >>> waiting(0, 36, 5.0, 3.0)
    'compiling (first run only)'
    >>> waiting(12, 36, 60.0, 0.0)
    'about 0:02:00 left'
    >>> waiting(0, 36, 1.0, 0.0), waiting(0, 1, 9.0, 0.0)
    ('', 'working')
    """
    if compiled_for > PATIENCE:
        return "compiling (first run only)"
    if elapsed <= PATIENCE:
        return ""
    if not done:
        return "working"
    left = int(elapsed / done * (total - done))
    return f"about {left // 3600}:{left % 3600 // 60:02d}:{left % 60:02d} left"
