"""The exception of `jaxmerge.io`, and how its messages show names and options."""

import reprlib
from collections.abc import Iterable
from typing import Any

from jaxmerge.refusals import Option, Refusal


class AdapterError(Refusal):
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


def given(name: str, value: Any) -> Option:
    """An option with the value that it has, cut to a bounded length.

    >>> print(given("heads", "all"), given("rank", 0))
    heads='all' rank=0
    """
    if isinstance(value, str):
        return Option(name, show(value)[1:-1], quoted=True)
    return Option(name, show(value))


def either(name: str, one: str, other: str) -> tuple[Option, str, Option]:
    """Two values of an option, of which a message leaves the choice.

    >>> print(*either("weight_file", "safetensors", "bin"), sep="")
    weight_file='safetensors' or weight_file='bin'
    """
    return Option(name, one, quoted=True), " or ", Option(name, other, quoted=True)
