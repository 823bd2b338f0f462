"""What a step of a pipeline is: its kind, its function, and what it may be given."""

import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

Kind = Literal[
    "rule",
    "rule transform",
    "whole-model transform",
    "space",
    "merger",
    "model merger",
    "learned merger",
    "calibration",
    "post",
]
REQUIRED = object()
EACH = "each"  # what the text of a pipeline says for a number that each task has


Number = type[bool] | type[int] | type[float]


class Accepts(NamedTuple):
    """What an argument may be: how messages say it, its type and its bounds.

    Attributes:
      convert: None where the argument is one of ``choices``, name -> target.
      each: it may also be `EACH`: every task has its own, given in the call.
    """

    says: str
    convert: Number | None = None
    within: Callable[[Any], bool] = lambda _: True
    choices: Mapping[str, str] = {}
    each: bool = False

    def read(self, value: Any) -> Any:
        """The value in its own type; ValueError if it is not accepted."""
        wanted = int if self.convert is int else (int, float)
        wanted = bool if self.convert is bool else wanted
        if not isinstance(value, wanted) or (
            isinstance(value, bool) and self.convert is not bool
        ):
            raise ValueError(f"expected {self.says}, got {value!r}")
        try:
            value = value if self.convert is None else self.convert(value)
        except OverflowError:
            value = math.inf
        if not math.isfinite(value) or not self.within(value):
            raise ValueError(f"expected {self.says}, got {value!r}")
        return value


class Argument(NamedTuple):
    """One keyword of a step."""

    accepts: Accepts
    default: Any = REQUIRED


class Published(NamedTuple):
    """How the source of a learned merger fits its coefficients.

    Attributes:
      objective: what is minimised, see `jaxmerge.jobs.learn_recipe.OBJECTIVES`.
      optimizer: see `jaxmerge.jobs.learn_recipe.OPTIMIZERS`.
      shared: one set of coefficients can serve all modules.
    """

    objective: str
    optimizer: str
    shared: bool = False


class Step(NamedTuple):
    """A step: one name of the language of pipelines.

    Attributes:
      kind: where in a pipeline it may stand.
      target: ``module:name`` of the function, or of the `Calibration`; of a step that
        a user has registered, the thing itself.
      says: what it does, in a few words.
      arxiv: where it is from, "" for what needs no reference.
      arguments: keyword -> what it accepts.
      positional: the one argument that may be given without its name.
      random: whether the step needs a key.
      linear: the merged update stays a weighted sum of the adapters' updates; for steps
        that drop entries at random, in the mean.
      averages: that sum is divided by the number of tasks.
      dense: True if merged updates are dense from here on, False if they are of low
        rank again, None if they stay what they are.
      flat: whether the step makes all singular values of the merged update equal.
      multiplies: the argument by which the merged update is multiplied, where a step
        does nothing else.
      equal_ranks: works only where all adapters of a module have one rank.
      statistics: needs statistics of the inputs of every module.
      homogeneous: its result is multiplied by c when all adapters are, so that very
        small ones can be merged at an ordinary scale; or the argument that says so.
      published: of a learned merger, how its source fits it.
      weighted: it takes weights of the tasks, or stands where they need not concern it.
      own: of a step that a user has registered, what records say of it; None of ours.
      problem: what is wrong with the arguments together, "" if nothing.
    """

    kind: Kind
    target: Any
    says: str
    arxiv: str = ""
    arguments: Mapping[str, Argument] = {}
    positional: str = ""
    random: bool = False
    linear: bool = False
    averages: bool = False
    dense: bool | None = None
    flat: bool = False
    multiplies: str = ""
    equal_ranks: bool = False
    statistics: bool = False
    homogeneous: bool | str = True
    published: Published | None = None
    weighted: bool = True
    own: Mapping[str, Any] | None = None
    problem: Callable[[Mapping[str, Any]], str] = lambda _: ""


def resolve(target: Any) -> Any:
    """Imports what ``module:function`` names; what is no text is the thing itself."""
    if not isinstance(target, str):
        return target
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
