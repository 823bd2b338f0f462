"""The record of a full model with an adapter in it, and the card that shows it."""

import json
from collections.abc import Mapping
from typing import Any

from jaxmerge.io.card import cell, file_table, input_table, is_hub_id

_WORST = 5


def build_model_card(record: Mapping[str, Any]) -> str:
    """README.md of a full model, from its record.

    Base models are named by Hub id only; paths of this machine are in the record.
    """
    inputs, output = record["inputs"], record["output"]
    bases = {entry["base_model"] for entry in inputs if is_hub_id(entry["base_model"])}
    by = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    front = ["---"]
    if bases:
        front += ["base_model:", *(f"- {json.dumps(base)}" for base in sorted(bases))]
    front += ["tags:", "- lora", "- merge", "- jaxmerge", "---"]
    sections = [
        "\n".join(front),
        "# Base model with a LoRA adapter in its weights",
        f"Every changed weight is the sum of the base and the update, formed in "
        f"float32 and rounded once, by {by}.",
    ]
    if inputs:
        sections += ["## Adapter", input_table(inputs)]
    sections += [
        "## Read beside the adapter" if inputs else "## Made of",
        file_table(record["files"]),
        "## Changed weights",
        _losses(output["change"], output["cast_error"]),
    ]
    return "\n\n".join(sections) + "\n"


def _losses(change: Mapping[str, float], cast_error: Mapping[str, float]) -> str:
    """The size of the updates, and what rounding took, where it took most."""
    if not cast_error:
        return "None."
    worst = sorted(cast_error, key=cast_error.__getitem__, reverse=True)[:_WORST]
    rows = [
        f"| {cell(key)} | {change[key]:.3g} | {cast_error[key]:.3g} |"
        if key in change
        else f"| {cell(key)} | replaced | {cast_error[key]:.3g} |"
        for key in worst
    ]
    return "\n".join(
        [
            f"{len(cast_error)} weights, of which these lost most by rounding:",
            "",
            "| weight | update / weight | rounding / update |",
            "|---|---|---|",
            *rows,
        ]
    )
