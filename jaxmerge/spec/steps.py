"""The names that pipelines are made of, and what each of them may be given.

One table, `STEPS`, read by the grammar, by ``jaxmerge methods`` and by the tests.
Nothing here imports JAX: functions are named as ``module:function`` and imported when a
pipeline runs, so that a text is checked before anything heavy is loaded.
"""

import importlib
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
      linear: the merged update stays linear in the adapters' updates; for steps that
        drop entries at random, in the mean.
      equal_ranks: works only where all adapters of a module have one rank.
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
    prepare: str = ""
    problem: Callable[[Mapping[str, Any]], str] = lambda _: ""


def _one_of(module: str, *names: str) -> Accepts:
    return Accepts(
        " or ".join(names), choices={name: f"{module}:{name}" for name in names}
    )


SHARE = Accepts("a number in (0, 1]", float, lambda x: 0 < x <= 1)
NUMBER = Accepts("a finite number", float)
POSITIVE = Accepts("a number above 0", float, lambda x: x > 0)
WINDOW = Accepts("a number in [0, 0.5)", float, lambda x: 0 <= x < 0.5)
COUNT = Accepts("a whole number of at least 1", int, lambda x: x >= 1)
FLAG = Accepts("True or False", bool)
SIGN = _one_of("jaxmerge.election", "sign_of_sum", "sign_of_count")
COMBINE = _one_of(
    "jaxmerge.election", "mean_of_agreeing", "sum_of_agreeing", "largest_of_agreeing"
)
_ELECTION = {
    "sign": Argument(SIGN, "sign_of_sum"),
    "combine": Argument(COMBINE, "mean_of_agreeing"),
}
_DENSITY = {"density": Argument(SHARE)}


def _della_problem(arguments: Mapping[str, Any]) -> str:
    density, epsilon = arguments["density"], arguments["epsilon"]
    if 0 < density - epsilon <= density + epsilon <= 1:
        return ""
    return (
        f"density {density} and epsilon {epsilon} give probabilities outside (0, 1]; "
        "choose epsilon below density and at most 1 - density"
    )


STEPS: dict[str, Step] = {
    "total": Step(
        "rule", "jaxmerge.linear:total", "sum of the tasks", "2212.04089", linear=True
    ),
    "mean": Step("rule", "jaxmerge.linear:mean", "mean of the tasks", linear=True),
    "elect": Step(
        "rule",
        "jaxmerge.election:elect",
        "elects a sign for each entry, combines the values that have it",
        "2306.01708",
        _ELECTION,
    ),
    "ties": Step(
        "rule",
        "jaxmerge.election:ties",
        "elect|trim(density=..) in one step, module by module",
        "2306.01708",
        _DENSITY | _ELECTION,
    ),
    "emr": Step(
        "rule",
        "jaxmerge.emr_merging:emr",
        "largest magnitude of the elected sign (EMR's unified update)",
        "2405.17461",
    ),
    "tsv": Step(
        "rule",
        "jaxmerge.singular:tsv",
        "task singular vectors made orthogonal to each other",
        "2412.00081",
    ),
    "iso_c": Step(
        "rule", "jaxmerge.singular:iso_c", "sum with a flat spectrum", "2502.04959"
    ),
    "iso_cts": Step(
        "rule",
        "jaxmerge.singular:iso_cts",
        "common and task-specific directions with a flat spectrum",
        "2502.04959",
        {"common_fraction": Argument(SHARE, 0.8)},
    ),
    "cart": Step(
        "rule",
        "jaxmerge.singular:cart",
        "mean plus rank-reduced deviations from it",
        "2412.12153",
        {"rank_fraction": Argument(SHARE, 0.04), "by": Argument(NUMBER, 0.1)},
    ),
    "trim": Step(
        "rule transform",
        "jaxmerge.election:trim",
        "keeps the largest entries of each task, module by module",
        "2306.01708",
        _DENSITY,
    ),
    "trim_whole_model": Step(
        "rule transform",
        "jaxmerge.mapping:trim_whole_model",
        "keeps the largest entries of each task over all modules together",
        "2306.01708",
        _DENSITY,
    ),
    "dare": Step(
        "rule transform",
        "jaxmerge.dropout:dare",
        "keeps entries at random, divides them by the density",
        "2311.03099",
        _DENSITY,
        random=True,
        linear=True,
    ),
    "della": Step(
        "rule transform",
        "jaxmerge.dropout:della",
        "keeps entries at random, large ones with a higher probability",
        "2406.11617",
        _DENSITY | {"epsilon": Argument(WINDOW, 0.05)},
        random=True,
        linear=True,
        problem=_della_problem,
    ),
    "full": Step(
        "space", "jaxmerge.spaces:full", "the updates themselves, dense", linear=True
    ),
    "core": Step(
        "space",
        "jaxmerge.spaces:core",
        "coordinates in the bases that all B and all A span",
        "2509.17786",
        linear=True,
    ),
    "knots": Step(
        "space",
        "jaxmerge.spaces:knots",
        "coordinates S V_t of the updates side by side",
        "2410.19735",
        linear=True,
    ),
    "knots_unscaled": Step(
        "space",
        "jaxmerge.spaces:knots_unscaled",
        "V_t without S, the knots space of the Core Space code",
        "2509.17786",
        linear=True,
    ),
    "concat": Step(
        "merger",
        "jaxmerge.linear:concat",
        "task arithmetic: the weighted sum, exactly, from factors",
        "2212.04089",
        linear=True,
    ),
    "average": Step(
        "merger",
        "jaxmerge.linear:average",
        "the mean, exactly, from factors",
        linear=True,
    ),
    "tsv_m": Step(
        "merger",
        "jaxmerge.singular:tsv_m",
        "task singular vectors made orthogonal, from factors",
        "2412.00081",
    ),
    "lora_lego": Step(
        "merger",
        "jaxmerge.factors:lora_lego",
        "k-means clusters of all rank-1 directions",
        "2409.16167",
        {
            "rank": Argument(COUNT, None),
            "iterations": Argument(COUNT, 10),
            "align": Argument(FLAG, True),
        },
        random=True,
    ),
    "robust_merge": Step(
        "merger",
        "jaxmerge.factors:robust_merge",
        "trims A and B apart, rescales directions, adds (equal ranks only)",
        "2502.17159",
        {"density": Argument(SHARE, 0.2), "by": Argument(NUMBER, 2.0)},
        equal_ranks=True,
    ),
    "pico": Step(
        "merger transform",
        "jaxmerge.calibration:pico",
        "shrinks crowded output directions before, restores the norm after",
        "2604.16826",
        prepare="jaxmerge.calibration:calibrate",
    ),
    "balanced": Step(
        "merger transform",
        "jaxmerge.gauge:balanced",
        "canonical factors first, so that only the updates matter",
        linear=True,
        prepare="jaxmerge.gauge:balance",
    ),
    "scale": Step(
        "post",
        "jaxmerge.updates:scale",
        "multiplies the merged update (lambda)",
        arguments={"by": Argument(NUMBER)},
        positional="by",
        linear=True,
    ),
    "isotropize": Step(
        "post",
        "jaxmerge.updates:isotropize",
        "sets all non-zero singular values to their mean",
        "2502.04959",
    ),
    "svc": Step(
        "post",
        "jaxmerge.updates:svc",
        "turns down directions to which several tasks add",
        "2602.05536",
        {"floor": Argument(POSITIVE, 1.0)},
    ),
    "truncate": Step(
        "post",
        "jaxmerge.updates:truncate",
        "best approximation of a given rank",
        arguments={"rank": Argument(COUNT)},
    ),
}
ALIASES = {"task_arithmetic": "concat"}


def names_of(*kinds: Kind) -> list[str]:
    """The names of all steps of some kinds, in the order of the table."""
    return [name for name, step in STEPS.items() if step.kind in kinds]


def resolve(target: str) -> Any:
    """Imports what ``module:function`` names."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
