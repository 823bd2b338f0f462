"""Text that a terminal shows and never obeys.

A name in a file may hold escape codes, which clear the screen or rewrite what stands
on it, marks that turn the direction of writing, and halves of characters, which no
file can hold.
"""

import re

_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # control characters, ESC among them
    "\u2028\u2029\u202a-\u202e\u2066-\u2069"  # ends of lines, turns of direction
    "\ud800-\udfff]"  # halves of characters, such as bytes of a name not in UTF-8
)


def is_plain(text: str) -> bool:
    r"""Whether a text shows as it is and can be written to a file.

    >>> is_plain("layers.0.fc"), is_plain("Größe"), is_plain("\x1b[2J"), is_plain("\n")
    (True, True, False, False)
    """
    return _UNSAFE.search(text) is None


def shown(text: str, keep: str = "\n\t") -> str:
    r"""A text with everything that is not plain spelled out, but for ``keep``.

    >>> print(shown("a\x1b[2J" + chr(0x202E) + "b"))
    a\x1b[2J\u202eb
    """

    def spell(found: re.Match[str]) -> str:
        letter = found.group()
        if letter in keep:
            return letter
        code = ord(letter)
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"

    return _UNSAFE.sub(spell, text)
