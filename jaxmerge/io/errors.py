"""The one exception of this package, and how names from files are shown in it."""

import reprlib
from collections.abc import Iterable
from typing import Any


class AdapterError(ValueError):
    """An adapter that cannot be read or written exactly.

    The message names the file, the module or the key, and the remedy.
    """


def listing(names: Iterable[str], limit: int = 4) -> str:
    """A few names for a message, in quotes, with the number of those left out.

    >>> print(listing(["a", "b", "c"], limit=2))
    'a', 'b' and 1 more
    """
    names = [repr(name) for name in names]
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def show(value: Any) -> str:
    """A value from a file for a message, cut to a bounded length."""
    return reprlib.repr(value)
