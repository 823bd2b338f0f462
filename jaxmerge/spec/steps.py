"""The names that pipelines are made of, and what each of them may be given.

One table, `STEPS`, read by the grammar, by ``jaxmerge methods`` and by the tests.
Nothing here imports JAX: functions are named as ``module:function`` and imported when a
pipeline runs, so that a text is checked before anything heavy is loaded.
"""

import importlib
from collections.abc import Mapping
from typing import Any

from jaxmerge.spec.step import Accepts, Argument, Kind, Step


def _one_of(module: str, *names: str) -> Accepts:
    return Accepts(
        " or ".join(names), choices={name: f"{module}:{name}" for name in names}
    )


SHARE = Accepts("a number in (0, 1]", float, lambda x: 0 < x <= 1)
NUMBER = Accepts("a finite number", float)
FRACTION = Accepts("a number in [0, 1]", float, lambda x: 0 <= x <= 1)
NOT_NEGATIVE = Accepts("a number of at least 0", float, lambda x: x >= 0)
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
_RIDGE = {"ridge": Argument(NOT_NEGATIVE, 0.0)}


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
    "compressed": Step(
        "space",
        "jaxmerge.compression:compressed",
        "coordinates in common bases of a given rank, which the merge then has (CtM)",
        "2606.03723",
        {
            "rank": Argument(COUNT),
            "beta": Argument(FRACTION, 0.25),
            "iterations": Argument(COUNT, 30),
        },
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
    "regmean": Step(
        "merger",
        "jaxmerge.regression:regmean",
        "least squares: does to each task's inputs what its own update does",
        "2212.09849",
        {"off_diagonal": Argument(FRACTION, 1.0)} | _RIDGE,
        statistics=True,
    ),
    "ssr": Step(
        "merger",
        "jaxmerge.regression:ssr",
        "the same by a small router between all A and all B (SSR-Merge)",
        "2606.10617",
        _RIDGE,
        statistics=True,
    ),
    "iteris": Step(
        "merger",
        "jaxmerge.iterative:iteris",
        "RegMean again and again, on inputs in the last merge",
        "2411.15231",
        {
            "iterations": Argument(COUNT, 10),
            "balance": Argument(FLAG, True),
            "mix": Argument(FRACTION, 5e-4),
            "ridge": Argument(NOT_NEGATIVE, 1e-7),
        },
        model=True,
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
