"""The merges that the experiments compare, each with as many candidates to choose from.

A closed-form method is some pipelines, each with some scales, and may take statistics
of unlabeled inputs; a learned one is a fit with some learning rates, looked at after
some numbers of steps. `BUDGET` candidates of every method, or fewer, are measured on
validation, and the best one goes to test.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import jax

from experiments.settings import Settings
from jaxmerge.jobs.learn_recipe import LearnRecipe
from jaxmerge.spec import Pipeline, parse
from jaxmerge.stats.moments import Statistics
from jaxmerge.types import Update
from jaxmerge.updates import scale

BUDGET = 8
SCALES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.4)
TIES_SCALES = (0.3, 0.6, 1.0, 1.5)
ISO_SCALES = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6)
CTM_SCALES = (0.6, 1.0, 1.5, 2.2)
PICO_SCALES = (0.5, 0.7, 1.0, 1.2, 1.4, 1.7, 2.0, 2.8)  # Pico restores the norm
PICO_TIES_SCALES = (0.7, 1.0, 1.4, 2.0)
REGRESSION_SCALES = (0.5, 1.0, 1.5, 2.0)
ITERIS_SCALES = (0.5, 0.7, 0.85, 1.0, 1.2, 1.4, 1.7, 2.0)
ITERIS_INPUTS = 64  # of each task, which every round runs twice
RATES = (1e-2, 2e-2, 4e-2, 8e-2)
ENTROPY_RATES = (1e-3, 2e-3, 5e-3, 1e-2)  # the first is that of TARA's paper
ALL_FACTORS_RATES = (5e-4, 1e-3, 2e-3, 5e-3)  # of every factor; above, vision8 diverges
LOOKS = 2  # after how many equal parts of the longest fit a candidate is taken


@dataclass(frozen=True)
class ClosedForm:
    """A merge of the adapters alone, or with statistics of their inputs."""

    name: str
    pipelines: tuple[str, ...]
    scales: tuple[float, ...] = SCALES


@dataclass(frozen=True)
class Fitted:
    """A merge that is learned from unlabeled inputs.

    Attributes:
      name: of the method.
      pipeline: of the learned merge.
      loss: "distillation", each adapter teaching its task, or "information", entropy
        less that of the mean prediction, from the scale at which that serves best; or
        "entropy" as the papers have it, from the scale of the best task arithmetic on
        validation.
      rates: of the optimiser.
      steps: of a candidate each; by default those of the settings, in `LOOKS` parts.
    """

    name: str
    pipeline: str
    loss: str = "distillation"
    rates: tuple[float, ...] = RATES
    steps: tuple[int, ...] = ()

    def recipe(self, candidate: Mapping[str, Any], **options: Any) -> LearnRecipe:
        """The fit of a candidate: a rate, and a number of steps."""
        settings = {
            "pipeline": parse(self.pipeline),
            "loss": self.loss,
            "start": "auto" if self.loss == "distillation" else "method",
            "rate": candidate["rate"],
            "steps": candidate["steps"],
        }
        return LearnRecipe(**settings | options)


@dataclass(frozen=True)
class Trained:
    """One LoRA adapter for all tasks, all of whose factors are trained: a reference.

    It sees what a learned merge sees, in as many steps of the same batches, and knows
    nothing of the adapters but what they teach.

    Attributes:
      name: of the reference.
      loss: "distillation", every own adapter teaching its task, or "labels".
      rates: of Adam.
    """

    name: str
    loss: str
    rates: tuple[float, ...] = ALL_FACTORS_RATES


Method = ClosedForm | Fitted | Trained


def candidates(method: Method, settings: Settings) -> list[dict[str, Any]]:
    """What is tried on validation; longer fits first, for they leave shorter ones."""
    if isinstance(method, ClosedForm):
        scales = [round(scale * settings.scale_factor, 6) for scale in method.scales]
        pairs = product(method.pipelines, scales)
        return [{"pipeline": f"{text}|scale({scale})"} for text, scale in pairs]
    longest, given = settings.longest_fit, getattr(method, "steps", ())
    steps = given or [longest * look // LOOKS for look in range(LOOKS, 0, -1)]
    return [{"rate": rate, "steps": n} for rate, n in product(method.rates, steps)]


def rescaled(
    pipeline: Pipeline, rounds: Callable[[Pipeline], Mapping[str, Update]]
) -> dict[str, Update]:
    """A merge through the model, whose rounds are the same for all scales.

    Args:
      pipeline: ends with the scale.
      rounds: gives the merge before that; it may keep it.
    """
    found = rounds(replace(pipeline, calls=pipeline.calls[:-1]))
    return {name: scale(update, by=pipeline.scale) for name, update in found.items()}


def merged(
    stacks: Any,
    pipeline: str,
    seed: int,
    stats: Mapping[str, Statistics] | None = None,
) -> dict[str, Update]:
    """A merge in closed form; the seed matters where the pipeline draws at random."""
    parsed = parse(pipeline)
    key = jax.random.key(seed) if parsed.random else None
    return parsed.run(stacks, key=key, stats=stats)


def is_random(method: Method, candidate: Mapping[str, Any]) -> bool:
    """Whether another seed gives another merge."""
    return not isinstance(method, ClosedForm) or parse(candidate["pipeline"]).random


def _with_density(pipeline: str, *densities: float) -> tuple[str, ...]:
    return tuple(pipeline.format(density) for density in densities)


def _with_ridge(pipeline: str, *ridges: float) -> tuple[str, ...]:
    return tuple(pipeline.format(ridge) for ridge in ridges)


METHODS: tuple[Method, ...] = (
    ClosedForm("Task arithmetic", ("concat",)),
    ClosedForm(
        "TIES",
        _with_density("elect|trim_whole_model(density={})|full", 0.2, 0.5),
        TIES_SCALES,
    ),
    ClosedForm(
        "DARE-TIES",
        _with_density("elect|dare(density={})|full", 0.3, 0.7),
        TIES_SCALES,
    ),
    ClosedForm(
        "KnOTS-TIES",
        _with_density("elect|trim_whole_model(density={})|knots", 0.2, 0.5),
        TIES_SCALES,
    ),
    ClosedForm("TSV-M", ("tsv_m",)),
    ClosedForm("Iso-C", ("concat|isotropize",), ISO_SCALES),
    ClosedForm("TSV-M + Iso-C", ("tsv_m|isotropize",), ISO_SCALES),
    ClosedForm("Pico + task arithmetic", ("concat|pico",), PICO_SCALES),
    ClosedForm(
        "Pico + TIES",
        _with_density("elect|trim(density={})|full|pico", 0.2, 0.5),
        PICO_TIES_SCALES,
    ),
    ClosedForm("Pico + TSV-M", ("tsv_m|pico",), PICO_SCALES),
    ClosedForm(
        "CtM + TIES",
        _with_density("ties(density={})|compressed(rank=16)", 0.25, 0.5),
        CTM_SCALES,
    ),
    ClosedForm(
        "RegMean", _with_ridge("regmean(ridge={})", 1e-4, 1e-2), REGRESSION_SCALES
    ),
    ClosedForm("SSR-Merge", _with_ridge("ssr(ridge={})", 0.03, 0.3), REGRESSION_SCALES),
    ClosedForm("IterIS", ("iteris(iterations=4, ridge=0.001)",), ITERIS_SCALES),
    Fitted("TARA-B, taught", "tara_b"),
    Fitted("TARA-A, taught", "tara_a"),
    Fitted("AdaMerging, taught", "adamerging"),
    Fitted("Pico + TARA-B, taught", "tara_b|calibrate"),
    Fitted(
        "TARA-B on RegMean, taught",
        "tara_b|regmean_adapters(ridge=0.01)",
        rates=RATES[1:],
    ),
    Trained("One LoRA, taught", "distillation"),
    Trained("One LoRA, labels", "labels"),
    Fitted("TARA-B, information", "tara_b", "information"),
    Fitted("TARA-B, entropy", "tara_b", "entropy", ENTROPY_RATES),
    Fitted("TARA-A, entropy", "tara_a", "entropy", ENTROPY_RATES),
    Fitted("AdaMerging, entropy", "adamerging", "entropy", ENTROPY_RATES),
    Fitted("TARA-B, as published", "tara_b", "entropy", ENTROPY_RATES[:1], (500,)),
)
BY_NAME = {method.name: method for method in METHODS}
