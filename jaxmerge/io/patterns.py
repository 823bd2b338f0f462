"""PEFT's rule for the keys of ``rank_pattern`` and ``alpha_pattern``, in bounded time.

PEFT matches ``(.*\\.)?(<key>)$`` from the start of a module's name with ``re``, which
tries alternatives one after the other: a hostile key keeps it busy for years. Here all
alternatives advance together, letter by letter, so the time is at most proportional to
the length of the key times that of the name. The single letters and anchors are
compared by ``re`` itself.
"""

import re
from functools import lru_cache

_LONGEST = 2000  # letters of a key, and steps of a compiled one
_QUANTIFIER = re.compile(r"[*+?]|\{(?!\})([0-9]*)(,?)([0-9]*)\}")
_ATOM = re.compile(
    r"\\[dDwWsSbBAZ]|\\[^a-zA-Z0-9]"  # escapes that `re` takes one by one
    r"|\[\^?\]?(?:\\.|[^\]\\])*\]"  # a set
    r"|[^\\\[()|*+?]",
    re.DOTALL,
)
_LITERAL = frozenset("{}]")

# A letter or an anchor for `re`, or offsets to the steps at which to go on.
_Step = re.Pattern[str] | tuple[int, ...]


class Pattern:
    """A key of a pattern table, ready to be matched.

    >>> Pattern(r"layers\\.\\d+\\.q").matches("model.layers.12.q")
    True

    Raises:
      ValueError: the key is no regular expression, or one that is not read here; the
        message says why and what to write instead.
    """

    def __init__(self, key: str):
        if len(key) > _LONGEST:
            raise _refusal("is too long")
        expression = rf"(.*\.)?({key})$"
        try:
            whole = re.compile(expression)
            # Without a choice in the key there is no second way to match its letters.
            self._whole = None if re.search(r"[*+?{|()]", key) else whole
            self._steps = [] if self._whole else _Parser(expression).parse()
        except (re.error, OverflowError) as error:
            raise ValueError(f"is not a regular expression ({error})") from error
        except RecursionError as error:
            raise ValueError("is nested too deeply to be a regular expression") from (
                error
            )

    def matches(self, module: str) -> bool:
        """Whether PEFT applies the key to a module of this name."""
        if self._whole:
            return self._whole.match(module) is not None
        states = {0}
        for place in range(len(module) + 1):
            states = self._advance(states, module, place)
            if len(self._steps) in states:
                return True
        return False

    def _advance(self, states: set[int], module: str, place: int) -> set[int]:
        """The steps reached after the letter at ``place``, or the end if it is now."""
        waiting, seen, reached = list(states), set(states), set()
        while waiting:
            state = waiting.pop()
            if state == len(self._steps):
                return {state}
            step = self._steps[state]
            if isinstance(step, tuple):
                following = [state + offset for offset in step]
            elif (found := step.match(module, place)) is None:
                continue
            elif found.end() > place:
                reached.add(state + 1)
                continue
            else:
                following = [state + 1]
            waiting += [state for state in following if state not in seen]
            seen.update(following)
        return reached


@lru_cache(maxsize=2**14)
def compiled(key: str) -> Pattern:
    """The `Pattern` of a key; a table is matched against every module."""
    return Pattern(key)


class _Parser:
    """Parses a valid expression by recursive descent into steps that match it."""

    def __init__(self, text: str):
        self._text = text
        self._place = 0

    def parse(self) -> list[_Step]:
        return self._alternatives()

    def _alternatives(self) -> list[_Step]:
        steps = self._sequence()
        while self._take("|"):
            other = self._sequence()
            steps = [(1, len(steps) + 2), *steps, (len(other) + 1,), *other]
        return steps

    def _sequence(self) -> list[_Step]:
        steps: list[_Step] = []
        while self._place < len(self._text) and self._text[self._place] not in "|)":
            steps += self._repeated(self._item())
            if len(steps) > _LONGEST:
                raise _refusal("is too long")
        return steps

    def _item(self) -> list[_Step]:
        if self._take("("):
            if self._text.startswith("?", self._place) and not self._take("?:"):
                raise _refusal(f"uses (?{self._text[self._place + 1]}")
            steps = self._alternatives()
            self._take(")")
            return steps
        atom = _ATOM.match(self._text, self._place)
        if atom is None:
            raise _refusal(f"uses {self._text[self._place : self._place + 2]}")
        self._place = atom.end()
        text = atom.group()
        return [re.compile(re.escape(text) if text in _LITERAL else text)]

    def _repeated(self, steps: list[_Step]) -> list[_Step]:
        found = _QUANTIFIER.match(self._text, self._place)
        if found is None:
            return steps
        self._place = found.end()
        if self._take("+"):
            raise _refusal("uses a possessive quantifier")
        self._take("?")  # lazy: another order of trying, the same names
        least, most = _bounds(found)
        if (len(steps) + 2) * max(least + 1, most or 0) > _LONGEST:
            raise _refusal("is too long")
        optional = [(1, len(steps) + 1), *steps]
        if most is None:
            rest = [(1, len(steps) + 2), *steps, (-len(steps) - 1,)]
        else:
            rest = optional * (most - least)
        return steps * least + rest

    def _take(self, text: str) -> bool:
        found = self._text.startswith(text, self._place)
        self._place += len(text) * found
        return found


def _bounds(quantifier: re.Match[str]) -> tuple[int, int | None]:
    """Least and largest number of repeats; None is without bound."""
    if quantifier.group() in "*+?":
        return {"*": (0, None), "+": (1, None), "?": (0, 1)}[quantifier.group()]
    least, comma, most = quantifier.groups()
    first = int(least or 0)
    if comma:
        return first, int(most) if most else None
    return first, first


def _refusal(reason: str) -> ValueError:
    return ValueError(
        f"{reason}, which is not read here; name the modules themselves, one key each"
    )
