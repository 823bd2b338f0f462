"""The merges that are compared, each with at most four candidates to choose from."""

from itertools import product
from typing import Any, NamedTuple

Candidate = dict[str, Any]  # "pipeline", and of a fit its "rate", "steps" and "texts"

STEPS = 30
LONGER = 120
RATES = (5e-3, 2e-2)
ON_REGMEAN = "regmean_adapters(ridge=0.01)"  # the ridge that RegMean chooses alone


class Method(NamedTuple):
    """A merge and what is tried of it.

    Attributes:
      name: in the table.
      candidates: that are measured on validation texts.
      batch: texts of each domain in a step, of a merge that is learned.
    """

    name: str
    candidates: tuple[Candidate, ...]
    batch: int = 2


def closed_form(name: str, pipelines: tuple[str, ...], *scales: float) -> Method:
    """Every pipeline at every scale."""
    pairs = product(pipelines, scales)
    return Method(name, tuple({"pipeline": f"{x}|scale({by})"} for x, by in pairs))


def taught(
    name: str,
    pipeline: str,
    *rates: float,
    steps: int = STEPS,
    texts: str = "validation",
) -> Method:
    """A merge that learns what every adapter says of the texts of its domain."""
    fit = {"pipeline": pipeline, "steps": steps, "texts": texts}
    return Method(name, tuple(fit | {"rate": rate} for rate in rates or RATES))


def _each(pipeline: str, *values: float) -> tuple[str, ...]:
    return tuple(pipeline.format(value) for value in values)


METHODS = (
    closed_form("Task arithmetic", ("concat",), 0.15, 0.25, 0.35, 0.5),
    closed_form(
        "TIES",
        _each("elect|trim_whole_model(density={})|full", 0.2, 0.5),
        *(0.5, 1.0),
    ),
    closed_form(
        "KnOTS-TIES",
        _each("elect|trim_whole_model(density={})|knots", 0.2, 0.5),
        *(0.5, 1.0),
    ),
    closed_form("TSV-M", ("tsv_m",), 0.3, 0.5, 0.7, 0.9),
    closed_form("Iso-C", ("concat|isotropize",), 0.5, 1.0, 1.4, 2.0),
    closed_form("Pico + task arithmetic", ("concat|pico",), 0.5, 0.7, 1.0, 1.4),
    closed_form(
        "Pico + TIES",
        _each("elect|trim(density={})|full|pico", 0.2, 0.5),
        *(0.7, 1.0),
    ),
    closed_form("Pico + TSV-M", ("tsv_m|pico",), 0.5, 0.7, 1.0, 1.4),
    closed_form("RegMean", _each("regmean(ridge={})", 1e-4, 1e-2), 0.7, 1.0, 1.3),
    closed_form("SSR-Merge", _each("ssr(ridge={})", 0.03, 0.3), 0.7, 1.0, 1.3),
    taught("TARA-B, taught", "tara_b"),
    taught("TARA-A, taught", "tara_a"),
    taught("AdaMerging, taught", "adamerging"),
    taught("TARA-B, longer", "tara_b", RATES[-1], steps=LONGER, texts="train"),
    taught("TARA-B on RegMean, taught", f"tara_b|{ON_REGMEAN}", RATES[-1]),
    taught("TARA-A on RegMean, taught", f"tara_a|{ON_REGMEAN}", RATES[-1]),
    taught(
        "TARA-B on RegMean, longer",
        f"tara_b|{ON_REGMEAN}",
        RATES[-1],
        steps=LONGER,
        texts="train",
    ),
)
BY_NAME = {method.name: method for method in METHODS}
