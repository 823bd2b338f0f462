"""The names that pipelines are made of, and what each of them may be given.

One table, `STEPS`, read by the grammar, by ``jaxmerge methods`` and by the tests.
Nothing here imports JAX: functions are named as ``module:function`` and imported when a
pipeline runs, so that a text is checked before anything heavy is loaded.
"""

import importlib
from collections.abc import Mapping
from typing import Any

from jaxmerge.spec.arguments import (
    COUNT,
    DENSITY,
    ELECTION,
    FLAG,
    FRACTION,
    NOT_NEGATIVE,
    NUMBER,
    POSITIVE,
    RIDGE,
    SHARE,
    WINDOW,
)
from jaxmerge.spec.kinds import Argument, Kind, Published, Step


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
        "rule",
        "jaxmerge.mergers.linear:total",
        "sum of the tasks",
        "2212.04089",
        linear=True,
    ),
    "mean": Step(
        "rule",
        "jaxmerge.mergers.linear:mean",
        "mean of the tasks",
        linear=True,
        averages=True,
    ),
    "elect": Step(
        "rule",
        "jaxmerge.mergers.ties:elect",
        "elects a sign for each entry, combines the values that have it",
        "2306.01708",
        ELECTION,
    ),
    "ties": Step(
        "rule",
        "jaxmerge.mergers.ties:ties",
        "elect|trim(density=..) in one step, module by module",
        "2306.01708",
        DENSITY | ELECTION,
    ),
    "emr": Step(
        "rule",
        "jaxmerge.mergers.emr:emr",
        "largest magnitude of the elected sign (EMR's unified update)",
        "2405.17461",
    ),
    "tsv": Step(
        "rule",
        "jaxmerge.mergers.singular:tsv",
        "task singular vectors made orthogonal to each other",
        "2412.00081",
    ),
    "iso_c": Step(
        "rule",
        "jaxmerge.mergers.singular:iso_c",
        "sum with a flat spectrum",
        "2502.04959",
        flat=True,
    ),
    "iso_cts": Step(
        "rule",
        "jaxmerge.mergers.singular:iso_cts",
        "common and task-specific directions with a flat spectrum",
        "2502.04959",
        {"common_fraction": Argument(SHARE, 0.8)},
        flat=True,
    ),
    "cart": Step(
        "rule",
        "jaxmerge.mergers.singular:cart",
        "mean plus rank-reduced deviations from it",
        "2412.12153",
        {"rank_fraction": Argument(SHARE, 0.04), "by": Argument(NUMBER, 0.1)},
    ),
    "trim": Step(
        "rule transform",
        "jaxmerge.mergers.trim:trim",
        "keeps the largest entries of each task, module by module",
        "2306.01708",
        DENSITY,
    ),
    "trim_whole_model": Step(
        "whole-model transform",
        "jaxmerge.mergers.whole_model:trim_whole_model",
        "keeps the largest entries of each task over all modules together",
        "2306.01708",
        DENSITY,
    ),
    "dare": Step(
        "rule transform",
        "jaxmerge.mergers.dare:dare",
        "keeps entries at random, divides them by the density",
        "2311.03099",
        DENSITY,
        random=True,
        linear=True,
    ),
    "della": Step(
        "rule transform",
        "jaxmerge.mergers.dare:della",
        "keeps entries at random, large ones with a higher probability",
        "2406.11617",
        DENSITY | {"epsilon": Argument(WINDOW, 0.05)},
        random=True,
        linear=True,
        problem=_della_problem,
    ),
    "full": Step(
        "space",
        "jaxmerge.mergers.spaces:full",
        "the updates themselves, dense",
        linear=True,
        dense=True,
    ),
    "core": Step(
        "space",
        "jaxmerge.mergers.spaces:core",
        "coordinates in the bases that all B and all A span",
        "2509.17786",
        linear=True,
    ),
    "knots": Step(
        "space",
        "jaxmerge.mergers.spaces:knots",
        "coordinates S V_t of the updates side by side",
        "2410.19735",
        linear=True,
    ),
    "knots_unscaled": Step(
        "space",
        "jaxmerge.mergers.spaces:knots_unscaled",
        "V_t without S, the knots space of the Core Space code",
        "2509.17786",
        linear=True,
    ),
    "compressed": Step(
        "space",
        "jaxmerge.mergers.ctm:compressed",
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
        "jaxmerge.mergers.linear:concat",
        "task arithmetic: the weighted sum, exactly, from factors",
        "2212.04089",
        linear=True,
    ),
    "average": Step(
        "merger",
        "jaxmerge.mergers.linear:average",
        "the mean, exactly, from factors",
        linear=True,
        averages=True,
    ),
    "tsv_m": Step(
        "merger",
        "jaxmerge.mergers.singular:tsv_m",
        "task singular vectors made orthogonal, from factors",
        "2412.00081",
    ),
    "lora_lego": Step(
        "merger",
        "jaxmerge.mergers.factored:lora_lego",
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
        "jaxmerge.mergers.factored:robust_merge",
        "trims A and B apart, rescales directions, adds (equal ranks only)",
        "2502.17159",
        {"density": Argument(SHARE, 0.2), "by": Argument(NUMBER, 2.0)},
        equal_ranks=True,
    ),
    "regmean": Step(
        "merger",
        "jaxmerge.mergers.regmean:regmean",
        "least squares: does to each task's inputs what its own update does",
        "2212.09849",
        {"off_diagonal": Argument(FRACTION, 1.0)} | RIDGE,
        statistics=True,
    ),
    "ssr": Step(
        "merger",
        "jaxmerge.mergers.regmean:ssr",
        "the same by a small router between all A and all B (SSR-Merge)",
        "2606.10617",
        RIDGE,
        statistics=True,
    ),
    "iteris": Step(
        "model merger",
        "jaxmerge.mergers.iteris:iteris",
        "RegMean again and again, on inputs in the last merge",
        "2411.15231",
        {
            "iterations": Argument(COUNT, 10),
            "balance": Argument(FLAG, True),
            "mix": Argument(FRACTION, 5e-4),
            "ridge": Argument(NOT_NEGATIVE, 1e-7),
        },
    ),
    "tara_a": Step(
        "learned merger",
        "jaxmerge.learning.coefficients:tara_a",
        "one learned coefficient for each rank-1 direction",
        "2603.26299",
        {"initial": Argument(NUMBER, 0.4)},
        published=Published("tchebycheff", "adamw"),
    ),
    "tara_b": Step(
        "learned merger",
        "jaxmerge.learning.coefficients:tara_b",
        "learned coefficients on the singular directions that all tasks share",
        "2603.26299",
        {"initial": Argument(NUMBER, 0.4)},
        published=Published("tchebycheff", "adamw"),
    ),
    "adamerging": Step(
        "learned merger",
        "jaxmerge.learning.coefficients:adamerging",
        "one learned coefficient for each task and module",
        "2310.02575",
        {"initial": Argument(NUMBER, 0.3), "clamp": Argument(FLAG, True)},
        published=Published("linear", "adam", shared=True),
    ),
    "pico": Step(
        "calibration",
        "jaxmerge.mergers.pico:PICO",
        "shrinks crowded output directions before, restores the norm after",
        "2604.16826",
    ),
    "calibrate": Step(
        "calibration",
        "jaxmerge.mergers.pico:CALIBRATED",
        "shrinks crowded output directions before, as pico does, and no more",
        "2604.16826",
    ),
    "balanced": Step(
        "calibration",
        "jaxmerge.mergers.balance:BALANCED",
        "canonical factors first, so that only the updates matter",
        linear=True,
    ),
    "scale": Step(
        "post",
        "jaxmerge.updates:scale",
        "multiplies the merged update (lambda)",
        arguments={"by": Argument(NUMBER)},
        positional="by",
        linear=True,
        multiplies="by",
    ),
    "isotropize": Step(
        "post",
        "jaxmerge.updates:isotropize",
        "sets all non-zero singular values to their mean",
        "2502.04959",
        flat=True,
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
        dense=False,
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
