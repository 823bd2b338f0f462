"""The merges that are compared, each with few candidates to choose from."""

from itertools import product
from typing import Any, NamedTuple

# "pipeline" or "lora", the loss of one LoRA adapter; of what learns "texts", "rate" and
# "steps", and its "unit" where that is not the model
Candidate = dict[str, Any]

STEPS = 30
LONGER = 120
SEEDS = 3
RATES = (5e-3, 2e-2)
ALL_FACTORS_RATES = (2e-3, 5e-3)  # of every factor
ON_REGMEAN = "regmean_adapters(ridge=0.01)"  # the ridge that RegMean chooses alone


class Method(NamedTuple):
    """A merge and what is tried of it.

    Attributes:
      name: in the table.
      candidates: that are measured on validation texts.
      batch: texts of each domain in a step, of a merge that is learned.
      seeds: of the batches, of a fit that is measured on test.
    """

    name: str
    candidates: tuple[Candidate, ...]
    batch: int = 2
    seeds: int = 1


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
    unit: str = "model",
    seeds: int = SEEDS,
) -> Method:
    """A merge that learns what every adapter says of the texts of its domain.

    It learns through the model, or the outputs of each block or layer.
    """
    fit: Candidate = {"pipeline": pipeline, "steps": steps, "texts": texts}
    fit |= {} if unit == "model" else {"unit": unit}
    candidates = tuple(fit | {"rate": rate} for rate in rates or RATES)
    return Method(name, candidates, seeds=seeds)


def by_layers(name: str, pipeline: str, *, texts: str = "validation") -> Method:
    """A merge that learns the outputs of each layer in closed form."""
    return Method(name, ({"pipeline": pipeline, "texts": texts, "unit": "layer"},))


def one_lora(
    name: str,
    loss: str,
    *rates: float,
    steps: int = STEPS,
    texts: str = "validation",
) -> Method:
    """A reference: one adapter for all domains, all of whose factors are trained.

    Args:
      name: in the table.
      loss: "distillation", every own adapter teaching its domain, or "labels", the
        completions themselves.
      *rates: of Adam; `ALL_FACTORS_RATES` unless given.
      steps: of Adam, in which it sees as many texts as a merge that is taught.
      texts: of which part.
    """
    fit: Candidate = {"lora": loss, "steps": steps, "texts": texts}
    return Method(
        name, tuple(fit | {"rate": rate} for rate in rates or ALL_FACTORS_RATES)
    )


def _each(pipeline: str, *values: float) -> tuple[str, ...]:
    return tuple(pipeline.format(value) for value in values)


METHODS = (
    closed_form("Task arithmetic", ("concat",), 0.15, 0.25, 0.35, 0.5),
    closed_form(
        "TIES",
        _each("elect|trim_whole_model(density={})|full", 0.2, 0.5),
        *(0.3, 0.5, 1.0),
    ),
    closed_form(
        "KnOTS-TIES",
        _each("elect|trim_whole_model(density={})|knots", 0.2, 0.5),
        *(0.5, 1.0, 1.4),
    ),
    closed_form("TSV-M", ("tsv_m",), 0.3, 0.5, 0.7, 0.9),
    closed_form("Iso-C", ("concat|isotropize",), 0.5, 1.0, 1.4, 2.0, 2.8, 4.0),
    closed_form("Pico + task arithmetic", ("concat|pico",), 0.5, 0.7, 1.0, 1.4),
    closed_form(
        "Pico + TIES",
        _each("elect|trim(density={})|full|pico", 0.2, 0.5),
        *(0.7, 1.0, 1.4),
    ),
    closed_form("Pico + TSV-M", ("tsv_m|pico",), 0.5, 0.7, 1.0, 1.4),
    closed_form("RegMean", _each("regmean(ridge={})", 1e-4, 1e-2), 0.7, 1.0, 1.3, 1.6),
    closed_form("SSR-Merge", _each("ssr(ridge={})", 0.03, 0.3), 0.7, 1.0, 1.3),
    closed_form("IterIS", ("iteris(iterations=4, ridge=0.001)",), 0.7, 1.0, 1.3),
    taught("TARA-B on RegMean, taught", f"tara_b|{ON_REGMEAN}", RATES[-1]),
    taught("TARA-A, taught", "tara_a", RATES[-1], seeds=1),
    taught("AdaMerging, taught", "adamerging", RATES[-1], seeds=1),
    taught("TARA-B, taught", "tara_b"),
    taught("TARA-B by blocks", "tara_b", RATES[-1], unit="block", seeds=1),
    taught(
        "TARA-B on RegMean by blocks",
        f"tara_b|{ON_REGMEAN}",
        RATES[-1],
        unit="block",
        seeds=1,
    ),
    by_layers("TARA-B by layers", "tara_b"),
    by_layers("TARA-B on RegMean by layers", f"tara_b|{ON_REGMEAN}"),
    one_lora("One LoRA, taught", "distillation"),
    one_lora("One LoRA, completions", "labels"),
    one_lora(
        *("One LoRA, joint training", "labels", ALL_FACTORS_RATES[0]),
        steps=LONGER,
        texts="train",
    ),
    taught("TARA-B, longer", "tara_b", RATES[-1], steps=LONGER, texts="train", seeds=1),
)
BY_NAME = {method.name: method for method in METHODS}
