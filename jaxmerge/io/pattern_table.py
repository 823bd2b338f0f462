"""The table ``rank_pattern`` or ``alpha_pattern``: the first key that fits a module.

Most keys are names, of which a table may hold one for each of ten thousand modules.
They are looked up and not tried: a dot stands for any letter, so that a name is looked
up with dots wherever some key of that length has them.
"""

import re
from collections.abc import Iterable, Sequence

from jaxmerge.io.patterns import LONGEST_KEY, Name, Pattern, Work

_PLAIN = re.compile(r"(?:[A-Za-z0-9_\- .]|\\\.)*")
_MOST_WORK = 20e6  # about a second; a name of each of 70,000 modules

# where the letters of a key are that stand for themselves: parts of its length
_Spans = tuple[tuple[int, int], ...]


class PatternTable:
    r"""Keys in their order, each compiled, ready for many modules.

    A key is a regular expression for the end of a name, at a dot.

    >>> PatternTable(["k_proj", r"layers\.1\..*"]).first("layers.1.q_proj")
    'layers\\.1\\..*'

    Raises:
      ValueError: a key cannot be read; the message names it.
    """

    def __init__(self, keys: Iterable[str]):
        self._work = Work(_MOST_WORK)
        self._names: dict[int, dict[_Spans, dict[str, tuple[int, str]]]] = {}
        self._patterns: list[tuple[int, str, Pattern]] = []
        for place, key in enumerate(keys):
            self._work.spend(2 * len(key))
            if len(key) <= LONGEST_KEY and _PLAIN.fullmatch(key):
                self._add_name(place, key)
                continue
            self._work.spend(1000 + 70 * len(key))
            try:
                self._patterns.append((place, key, Pattern(key)))
            except ValueError as error:
                raise ValueError(f"key {_short(key)} {error}") from error

    def first(self, module: str) -> str | None:
        """The first key that PEFT applies to a module, None if there is none.

        Raises:
          ValueError: this table takes too long to be that of an adapter.
        """
        place, key = self._first_name(module)
        name = Name(module)
        for number, pattern_key, pattern in self._patterns:
            if place is not None and number > place:
                break
            if pattern.found_in(name, self._work):
                return pattern_key
        return key

    def _add_name(self, place: int, key: str) -> None:
        pieces = re.split(r"(?<!\\)\.", key)
        letters = [piece.replace(r"\.", ".") for piece in pieces]
        spans, start = [], 0
        for piece in letters:
            spans.append((start, start + len(piece)))
            start += len(piece) + 1
        shapes = self._names.setdefault(start - 1, {})
        names = shapes.setdefault(tuple(spans), {})
        names.setdefault("\0".join(letters), (place, key))

    def _first_name(self, module: str) -> tuple[int | None, str | None]:
        best: tuple[int | None, str | None] = (None, None)
        ends = [module, module[:-1]] if module.endswith("\n") else [module]
        for text in ends:
            starts = _starts(text)
            self._work.spend(len(text) + 8 * len(starts))
            for start in starts:
                for spans, names in self._names.get(len(text) - start, {}).items():
                    self._work.spend(10 + 6 * len(spans))
                    letters = _letters(text, start, spans)
                    found = None if letters is None else names.get(letters)
                    if found and (best[0] is None or found[0] < best[0]):
                        best = found
        return best


def _starts(text: str) -> Sequence[int]:
    """Where the end of a name may begin: at its start, and behind dots of one line."""
    line = text.find("\n")
    dots = [found.end() for found in re.finditer(r"\.", text)]
    return [0, *(dot for dot in dots if line < 0 or dot <= line)]


def _letters(text: str, start: int, spans: _Spans) -> str | None:
    """What a name has where the key has letters; None if a dot would be a new line."""
    gaps = (text[start + stop : start + stop + 1] for _, stop in spans[:-1])
    if any(gap == "\n" for gap in gaps):
        return None
    return "\0".join(text[start + a : start + b] for a, b in spans)


def _short(key: str) -> str:
    return repr(key if len(key) <= 60 else f"{key[:60]}...")
