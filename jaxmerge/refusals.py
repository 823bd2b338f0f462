"""How functions of this package refuse: by a message whose options are data, not text.

A remedy names an option of a function, such as ``assume_alpha``. The same option is a
flag on the command line and a key in a recipe file, so a message keeps its options
apart from its words, and each face spells them its own way.
"""

import difflib
from collections.abc import Callable, Iterable
from typing import NamedTuple

_ALIKE = 0.75  # below this share of equal letters it is another name


class Option(NamedTuple):
    """An option as a message speaks of it.

    Attributes:
      name: that of the keyword in Python.
      value: what to give, as plain text without quotes; "" where the option is only
        named (unless quoted: that is an empty text), "True" for what is switched on.
        Several texts are several entries of a list or a table.
      quoted: the value stands in quotes in Python.
      listed: it is one entry of a list in Python.
      tabled: it is one entry ``name=value`` of a table in Python.

    >>> print(Option("assume_alpha", "<number>"), Option("heads", "keep", quoted=True))
    assume_alpha=<number> heads='keep'
    >>> print(Option("ignore_config_keys", ("a", "b"), quoted=True, listed=True))
    ignore_config_keys=['a', 'b']
    >>> print(Option("vera_inputs", ("q=SIZE", "v=SIZE"), tabled=True))
    vera_inputs={'q': SIZE, 'v': SIZE}
    """

    name: str
    value: str | tuple[str, ...] = ""
    quoted: bool = False
    listed: bool = False
    tabled: bool = False

    def __str__(self) -> str:
        value = ", ".join(map(self._entry, self.values))
        if self.listed:
            value = f"[{value}]"
        if self.tabled:
            value = f"{{{value}}}"
        return f"{self.name}={value}" if value else self.name

    @property
    def values(self) -> tuple[str, ...]:
        """The value, or the entries of which it consists."""
        return (self.value,) if isinstance(self.value, str) else self.value

    def _entry(self, text: str) -> str:
        if self.tabled:
            name, _, value = text.rpartition("=")
            return f"{name!r}: {value}"
        return repr(text) if self.quoted else text


class Message(tuple[str | Option, ...]):
    """Words and options; as text it is what a Python user reads.

    >>> message = Message(["no lora_alpha; pass ", Option("assume_alpha", "<number>")])
    >>> print(message)
    no lora_alpha; pass assume_alpha=<number>
    >>> message.spelled(lambda option: f"--{option.name.replace('_', '-')}")
    'no lora_alpha; pass --assume-alpha'
    """

    def __str__(self) -> str:
        return self.spelled(str)

    def spelled(self, option: Callable[[Option], str]) -> str:
        """As text, with every option as a function spells it."""
        return "".join(x if isinstance(x, str) else option(x) for x in self)


class Refusal(ValueError):
    """Something that the caller has to change: says what, and what to do instead.

    Args:
      *parts: words and options, in their order.
    """

    message: Message

    def __init__(self, *parts: str | Option):
        self.message = Message(parts)
        super().__init__(str(self.message))

    def __reduce__(self) -> tuple[type["Refusal"], tuple[str | Option, ...]]:
        return type(self), tuple(self.message)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Of which known name another is a misspelling; None if of none.

    >>> nearest("wieghts", ["key", "weights"]), nearest("colour", ["key", "weights"])
    ('weights', None)
    """
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=_ALIKE)
    return found[0] if found else None
