"""How functions of this package refuse: by a message whose options are data, not text.

A remedy names an option of a function, such as ``assume_alpha``. The same option is a
flag on the command line and a key in a recipe file, so a message keeps its options
apart from its words, and each face spells them its own way.
"""

from collections.abc import Callable
from typing import NamedTuple


class Option(NamedTuple):
    """An option as a message speaks of it.

    Attributes:
      name: that of the keyword in Python.
      value: what to give, as plain text without quotes; "" where the option is only
        named (unless quoted: that is an empty text), "True" for what is switched on.
      quoted: the value stands in quotes in Python.
      listed: it is one entry of a list in Python.

    >>> print(Option("assume_alpha", "<number>"), Option("heads", "keep", quoted=True))
    assume_alpha=<number> heads='keep'
    """

    name: str
    value: str = ""
    quoted: bool = False
    listed: bool = False

    def __str__(self) -> str:
        value = repr(self.value) if self.quoted else self.value
        if self.listed:
            value = f"[{value}]"
        return f"{self.name}={value}" if value else self.name


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
