"""A key of ``rank_pattern`` or ``alpha_pattern`` as PEFT reads it, in bounded time.

PEFT matches ``(.*\\.)?(<key>)$`` from the start of a module's name with ``re``, which
tries alternatives one after the other: a hostile key keeps it busy for years. Here all
alternatives advance together, letter by letter, and what follows a letter is computed
once for all names. The single letters and anchors are compared by ``re`` itself.
"""

import re
import warnings
from functools import cached_property

LONGEST_KEY = 1000  # letters
_MOST_STEPS = 2000  # of a compiled key
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
_YES, _NO = -1, -2


class Work:
    """What matching may cost; one unit is about a step of one letter, 60 ns.

    Raises:
      ValueError: from `spend`, when it is used up: no adapter needs as much.
    """

    def __init__(self, units: float):
        self._units = units

    def spend(self, units: float) -> None:
        self._units -= units
        if self._units < 0:
            raise ValueError(
                "holds too many and too long expressions to be matched with every "
                "module; name the modules themselves, one key each"
            )


class Name:
    """The name of a module, with what `re` could see at every place of it."""

    def __init__(self, text: str):
        self.text = text

    @cached_property
    def places(self) -> list[str]:
        """The letters before and behind every place, and whether the text ends.

        Two places at which these are equal are equal to every letter and anchor.
        """
        around = f"\0{self.text}\0"
        places = [around[i : i + 2] for i in range(len(around) - 1)]
        places[0] += "^"
        places[-1] += "$"
        if self.text.endswith("\n"):
            places[-2] += "$"
        return places


class Pattern:
    """A key of a pattern table, ready to be matched.

    >>> Pattern(r"layers\\.\\d+\\.q").matches("model.layers.12.q")
    True

    Raises:
      ValueError: the key is no regular expression, or one that is not read here; the
        message says why and what to write instead.
    """

    def __init__(self, key: str):
        if len(key) > LONGEST_KEY:
            raise _refusal("is too long")
        expression = rf"(.*\.)?({key})$"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what `re` may read otherwise once
                re.compile(expression)
                self._steps = _Parser(expression).parse()
        except (re.error, OverflowError) as error:
            raise ValueError(f"is not a regular expression ({error})") from error
        except RecursionError as error:
            raise ValueError("is nested too deeply to be a regular expression") from (
                error
            )
        self._numbers = {frozenset([0]): 0}
        self._states = [frozenset([0])]
        self._following: list[dict[str, int]] = [{}]

    def matches(self, module: str) -> bool:
        """Whether PEFT applies the key to a module of this name."""
        return self.found_in(Name(module), Work(float("inf")))

    def found_in(self, name: Name, work: Work) -> bool:
        """The same, for many names and within bounds."""
        work.spend(len(name.text))
        state = 0
        for number, place in enumerate(name.places):
            following = self._following[state].get(place)
            if following is None:
                following = self._go_on(state, name, number, work)
            if following < 0:
                return following == _YES
            state = following
        return False

    def _go_on(self, state: int, name: Name, number: int, work: Work) -> int:
        """The number of the set of steps that are reached from another one."""
        reached = self._advance(self._states[state], name.text, number, work)
        if len(self._steps) in reached:
            following = _YES
        elif not reached:
            following = _NO
        else:
            following = self._numbers.setdefault(reached, len(self._states))
            if following == len(self._states):
                self._states.append(reached)
                self._following.append({})
        self._following[state][name.places[number]] = following
        return following

    def _advance(
        self, states: frozenset[int], text: str, place: int, work: Work
    ) -> frozenset[int]:
        """The steps reached after the letter at ``place``, or the end if it is now."""
        waiting, seen, reached = list(states), set(states), set[int]()
        while waiting:
            work.spend(15)
            state = waiting.pop()
            if state == len(self._steps):
                return frozenset([state])
            step = self._steps[state]
            if isinstance(step, tuple):
                following = [state + offset for offset in step]
            elif (found := step.match(text, place)) is None:
                continue
            elif found.end() > place:
                reached.add(state + 1)
                continue
            else:
                following = [state + 1]
            waiting += [state for state in following if state not in seen]
            seen.update(following)
        return frozenset(reached)


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
            if len(steps) > _MOST_STEPS:
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
        if (len(steps) + 2) * max(least + 1, most or 0) > _MOST_STEPS:
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
