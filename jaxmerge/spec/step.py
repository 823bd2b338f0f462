"""What a step of a pipeline is: its kind, its function, and what it may be given."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

Kind = Literal["rule", "rule transform", "space", "merger", "merger transform", "post"]
REQUIRED = object()


class Accepts(NamedTuple):
    """What an argument may be: how messages say it, its type and its bounds."""

    says: str
    convert: type | None = None  # None: the argument is one of `choices`
    within: Callable[[Any], bool] = lambda _: True
    choices: Mapping[str, str] = {}  # name -> target

    def read(self, value: Any) -> Any:
        """The value in its own type; ValueError if it is not accepted."""
        wanted = int if self.convert is int else (int, float)
        wanted = bool if self.convert is bool else wanted
        if not isinstance(value, wanted) or (
            isinstance(value, bool) and self.convert is not bool
        ):
            raise ValueError(f"expected {self.says}, got {value!r}")
        try:
            value = self.convert(value)
        except OverflowError:
            value = math.inf
        if not math.isfinite(value) or not self.within(value):
            raise ValueError(f"expected {self.says}, got {value!r}")
        return value


class Argument(NamedTuple):
    """One keyword of a step."""

    accepts: Accepts
    default: Any = REQUIRED


class Step(NamedTuple):
    """One name of the language.

    Attributes:
      kind: where in a pipeline it may stand.
      target: ``module:function``.
      says: what it does, in a few words.
      arxiv: where it is from, "" for what needs no reference.
      arguments: keyword -> what it accepts.
      positional: the one argument that may be given without its name.
      random: needs a key.
      linear: the merged update stays a weighted sum of the adapters' updates; for steps
        that drop entries at random, in the mean.
      equal_ranks: works only where all adapters of a module have one rank.
      statistics: needs statistics of the inputs of every module.
      model: runs the base model on inputs of every task; only posts may follow.
      prepare: of a merger transform, the target of what it does to the adapters before
        they are merged.
      problem: what is wrong with the arguments together, "" if nothing.
    """

    kind: Kind
    target: str
    says: str
    arxiv: str = ""
    arguments: Mapping[str, Argument] = {}
    positional: str = ""
    random: bool = False
    linear: bool = False
    equal_ranks: bool = False
    statistics: bool = False
    model: bool = False
    prepare: str = ""
    problem: Callable[[Mapping[str, Any]], str] = lambda _: ""
