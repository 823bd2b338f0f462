"""Named methods: complete pipelines with the numbers that their sources publish.

The table behind ``jaxmerge methods`` and docs/methods.md. A scale that was tuned on
other adapters is a place to start from: choose your own on validation data.
"""

from typing import NamedTuple

from jaxmerge.refusals import Option
from jaxmerge.spec.steps import STEPS, names_of


class Preset(NamedTuple):
    """One named method.

    Attributes:
      method: its name in the literature.
      pipeline: what it stands for.
      arxiv: where the method is from.
      source: where the numbers in the pipeline are from.
    """

    method: str
    pipeline: str
    arxiv: str
    source: str


_KNOTS = "KnOTS code, {} on eight ViT-B/32 adapters of rank 16"
_CORE = "Core Space code, {} on eight ViT-B/32 adapters of rank 16"
_ISO = "the paper's best for eight fully fine-tuned ViT-B/32"

PRESETS: dict[str, Preset] = {
    "scaled_task_arithmetic": Preset(
        "Task arithmetic",
        "concat|scale(0.1)",
        "2212.04089",
        _KNOTS.format("vitB_r16_tv"),
    ),
    "ties": Preset(
        "TIES",
        "elect|trim_whole_model(density=0.3)|full|scale(0.3)",
        "2306.01708",
        _KNOTS.format("vitB_r16_ties"),
    ),
    "ties_sum": Preset(
        "TIES with a sum",
        "elect(combine=sum_of_agreeing)|trim_whole_model(density=0.2)|full|scale(0.3)",
        "2306.01708",
        "FusionBench's defaults for full models",
    ),
    "dare_ties": Preset(
        "DARE-TIES",
        "elect|dare(density=0.8)|full|scale(0.6)",
        "2311.03099",
        _KNOTS.format("vitB_r16_dare_ties"),
    ),
    "della": Preset(
        "DELLA",
        "elect|della(density=0.7, epsilon=0.07)|full|scale(1.1)",
        "2406.11617",
        "DELLA code's example for three fully fine-tuned Llama-2-13B",
    ),
    "knots_ties": Preset(
        "KnOTS-TIES",
        "elect|trim_whole_model(density=0.2)|knots|scale(0.6)",
        "2410.19735",
        _KNOTS.format("vitB_r16_knots_ties"),
    ),
    "knots_dare_ties": Preset(
        "KnOTS-DARE-TIES",
        "elect|dare(density=0.9)|knots|scale(0.7)",
        "2410.19735",
        _KNOTS.format("vitB_r16_knots_dare_ties"),
    ),
    "knots_unscaled_ties_iso": Preset(
        "TIES + Iso, V without S",
        "elect|trim(density=0.1)|knots_unscaled|isotropize|scale(0.2)",
        "2509.17786",
        _CORE.format("vitB_r16_knots_ties_iso"),
    ),
    "core_tsv": Preset(
        "TSV-M in core space",
        "tsv|core|scale(0.2)",
        "2509.17786",
        _CORE.format("vitB_r16_core_tsv"),
    ),
    "core_tsv_iso": Preset(
        "TSV-M + Iso in core space",
        "tsv|core|isotropize|scale(0.9)",
        "2509.17786",
        "ENMP code (2604.17753), vitB_r16_core_tsv_iso on the same adapters",
    ),
    "ctm_ties": Preset(
        "CtM, TIES",
        "ties(density=0.25)|compressed(rank=16)|scale(0.75)",
        "2606.03723",
        "CtM code's README, on eight ViT-B/32 adapters of rank 16",
    ),
    "iso_c": Preset("Iso-C", "concat|isotropize|scale(1.3)", "2502.04959", _ISO),
    "iso_cts": Preset(
        "Iso-CTS",
        "iso_cts(common_fraction=0.8)|core|scale(1.5)",
        "2502.04959",
        _ISO,
    ),
    "cart": Preset(
        "CART",
        "cart(rank_fraction=0.04, by=0.1)|core",
        "2412.12153",
        "Core Space code's defaults; no outer scale published",
    ),
    "emr": Preset(
        "EMR, unified update only", "emr|full", "2405.17461", "the method has no scale"
    ),
    "svc": Preset(
        "SVC of task arithmetic",
        "concat|svc(floor=1.0)",
        "2602.05536",
        "SVC code's default floor; the method has no scale",
    ),
    "pico_ta": Preset(
        "Pico, task arithmetic",
        "concat|pico",
        "2604.16826",
        "Pico restores the norm, so a scale inside has no effect",
    ),
    "pico_tsv_m": Preset(
        "Pico, TSV-M",
        "tsv_m|pico",
        "2604.16826",
        "Pico restores the norm, so a scale inside has no effect",
    ),
}


class MethodRow(NamedTuple):
    """One line of the table of methods.

    Attributes:
      needs: options that a job has to be given with it, see `Pipeline.needs`.
    """

    name: str
    method: str
    space: str
    pipeline: str
    arxiv: str
    source: str
    needs: tuple[Option, ...]


def method_table() -> list[MethodRow]:
    """All presets, then the mergers that are complete methods by themselves."""
    from jaxmerge.spec.pipeline import parse

    presets = dict(PRESETS)
    for name in names_of("merger", "model merger", "learned merger"):
        step = STEPS[name]
        if step.own is not None:
            continue
        presets[name] = Preset(step.says, name, step.arxiv, "no scale: 1")
    return [
        MethodRow(name, p.method, _space(p.pipeline), *p[1:], parse(name).needs)
        for name, p in presets.items()
    ]


def method_markdown() -> str:
    """`method_table` as a Markdown table, for docs/methods.md."""
    lines = [
        "| name | method | space | pipeline | needs | arXiv | numbers from |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in method_table():
        paper = f"[{row.arxiv}](https://arxiv.org/abs/{row.arxiv})" if row.arxiv else ""
        name, pipeline = f"`{row.name}`", f"`{row.pipeline}`"
        needs = ", ".join(f"`{option}`" for option in row.needs)
        cells = (name, row.method, row.space, pipeline, needs, paper, row.source)
        escaped = [cell.replace("|", "\\|") for cell in cells]
        lines.append(f"| {' | '.join(escaped)} |")
    return "\n".join(lines) + "\n"


def _space(pipeline: str) -> str:
    """The space in which a pipeline works; "factors" if it needs none."""
    names = [segment.partition("(")[0] for segment in pipeline.split("|")]
    found = [name for name in names if name in names_of("space")]
    return found[0] if found else "factors"
