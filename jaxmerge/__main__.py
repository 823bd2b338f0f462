"""``python -m jaxmerge`` and ``jaxmerge`` are the command line."""

import os
import signal
from typing import Any

_INTERRUPTED = 130


def main() -> None:
    """Runs the command line and exits with its code.

    While it still loads there is nothing to undo, so Ctrl-C ends it at once: an
    exception in the middle of an import would be a traceback.
    """
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, _end_at_once)
    from jaxmerge.cli import main as run

    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


def _end_at_once(*_: Any) -> None:
    os._exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
