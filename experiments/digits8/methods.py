"""The merges that the demonstration compares, as pipelines without their scale."""

from typing import NamedTuple

SCALES = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8)
DENSITIES = (0.1, 0.3, 0.7)


class Method(NamedTuple):
    """One line of the table; ``pipelines`` are tried, each with every scale."""

    name: str
    pipelines: tuple[str, ...]


def _each_density(pipeline: str) -> tuple[str, ...]:
    return tuple(pipeline.format(density=density) for density in DENSITIES)


METHODS = (
    Method("Task arithmetic", ("concat",)),
    Method("TIES", _each_density("elect|trim_whole_model(density={density})|full")),
    Method("TIES, core space", _each_density("elect|trim(density={density})|core")),
    Method(
        "KnOTS-TIES", _each_density("elect|trim_whole_model(density={density})|knots")
    ),
    Method("DARE", _each_density("total|dare(density={density})|full")),
    Method("DARE-TIES", _each_density("elect|dare(density={density})|full")),
    Method("DELLA", _each_density("elect|della(density={density}, epsilon=0.05)|full")),
    Method("EMR, unified", ("emr|full",)),
    Method("TSV-M", ("tsv_m",)),
    Method("TSV-M + Iso", ("tsv_m|isotropize",)),
    Method("Iso-C", ("concat|isotropize",)),
    Method("Iso-CTS", ("iso_cts(common_fraction=0.8)|core",)),
    Method("CART", ("cart(rank_fraction=0.3, by=1.0)|core",)),
    Method("SVC", ("concat|svc",)),
    Method("LoRA-LEGO", ("lora_lego",)),
    Method("Pico + task arithmetic", ("concat|pico",)),
    Method("Pico + TIES", _each_density("elect|trim(density={density})|core|pico")),
    Method("Pico + TSV-M", ("tsv_m|pico",)),
)
