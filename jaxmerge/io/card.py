"""The record of a merge: ``jaxmerge.json``, and the model card that shows it."""

import importlib.metadata
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

from jaxmerge.io.adapters import Adapters

RECORD_FORMAT = 1


def build_record(
    like: Adapters, recipe: str | Mapping[str, Any] | None, output: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that is needed to compute a merge again, as JSON values.

    Args:
      like: the adapters that were merged.
      recipe: how: the text of a pipeline, or a mapping with "pipeline", "weights",
        "seed" and whatever else the caller needs to repeat it; a learned merge has
        "learned" in the place of "pipeline", an adapter under other names "converted",
        one that ran the base has "sample".
        "files" are those that were read beside the adapters, by their role.
      output: what was written.
    """
    if isinstance(recipe, str):
        recipe = {"pipeline": recipe}
    return {
        "format": RECORD_FORMAT,
        "versions": versions(),
        "recipe": dict(recipe or {}),
        "read_options": asdict(like.options),
        "inputs": inputs_of(like),
        "output": dict(output),
    }


def versions() -> dict[str, str]:
    """The versions on which a result depends."""
    return {name: importlib.metadata.version(name) for name in ("jaxmerge", "jax")}


def inputs_of(adapters: Adapters) -> list[dict[str, Any]]:
    """What a record says of the adapters that were read."""
    return [
        {
            "name": name,
            "path": source.path,
            "base_model": source.base_model,
            "revision": source.revision,
            "weight_file": source.weight_file,
            "sha256": dict(source.sha256),
            **({"hub": source.hub} if source.hub else {}),
        }
        for name, source in zip(adapters.names, adapters.sources, strict=True)
    ]


def build_card(record: Mapping[str, Any], energy: Mapping[str, float]) -> str:
    """README.md of a merged adapter.

    The front matter names base models only by Hub id, never by a local path. The body
    shows the recipe, the inputs by name with their SHA-256 and the energy kept. Paths
    of this machine are in the record only.

    Args:
      record: what `build_record` gives.
      energy: module -> share of the squared norm that was kept.
    """
    recipe = record["recipe"]
    inputs = record["inputs"]
    made_by = ", ".join(f"{k} {v}" for k, v in record["versions"].items())
    learned = "learned" in recipe
    sections = [
        _front_matter(inputs, record["output"]["sha256"]),
        f"# {_title(recipe, len(inputs))}",
        f"{_made(recipe)}, by {made_by}.",
    ]
    if recipe:
        sections += ["## Recipe", _recipe(recipe)]
    if inputs:
        sections += ["## Inputs", input_table(inputs)]
    if "files" in recipe:
        reader = "Read by the fit" if learned else "Read beside the adapters"
        sections += [f"## {reader}", file_table(recipe["files"])]
    heads = [name for name in record["output"]["sha256"] if name.startswith("heads/")]
    if heads:
        sections += ["## Heads", _heads(heads)]
    shares = recipe.get("energy_kept", energy)  # before anything was saved
    sections += ["## Energy kept", _energy_table(shares), "## Record", _kept(recipe)]
    return "\n\n".join(sections) + "\n"


def is_hub_id(name: str | None) -> bool:
    """Whether a base model's name can be an id on the Hub rather than a local path.

    >>> [is_hub_id(name) for name in ("gpt2", "org/model-7b", "/content/x", "a/b/c")]
    [True, True, False, False]
    """
    piece = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}"
    return name is not None and bool(re.fullmatch(rf"({piece}/)?{piece}", name))


_LIBRARIES = {  # a file that a library loads -> the library
    "adapter_config.json": "peft",
    "pytorch_lora_weights.safetensors": "diffusers",
}


def _front_matter(inputs: list[Mapping[str, Any]], files: Collection[str]) -> str:
    bases = dict.fromkeys(i["base_model"] for i in inputs if is_hub_id(i["base_model"]))
    lines = ["---"]
    if bases:
        lines += ["base_model:", *(f"- {json.dumps(base)}" for base in bases)]
    lines += [
        f"library_name: {_LIBRARIES[file]}" for file in files if file in _LIBRARIES
    ]
    return "\n".join([*lines, "tags:", "- lora", "- merge", "- jaxmerge", "---"])


def _title(recipe: Mapping[str, Any], inputs: int) -> str:
    if "extracted" in recipe:
        return "LoRA adapter between two full models"
    if "converted" in recipe:
        return "LoRA adapter under other names"
    if "restored" in recipe:
        return "LoRA adapter restored from compressed ones"
    return f"Merge of {inputs} LoRA adapter{'s' if inputs > 1 else ''}"


def _made(recipe: Mapping[str, Any]) -> str:
    if "extracted" in recipe:
        return "The leading directions of the difference of two models"
    if "converted" in recipe:
        return "Converted, with its scale folded into B"
    if "restored" in recipe:
        return "Restored from components that several adapters share"
    if "learned" in recipe:
        return "Coefficients learned through the base model without labels"
    if "sample" in recipe:
        return "Made by running the base model on inputs without labels"
    return "Made without loading the base model"


def _recipe(recipe: Mapping[str, Any]) -> str:
    apart = ("pipeline", "files", "energy_kept")
    rest = {key: value for key, value in recipe.items() if key not in apart}
    parts = [_fenced(str(recipe["pipeline"]), "text")] if "pipeline" in recipe else []
    parts += ["\n".join(f"- {cell(k)}: {cell(json.dumps(v))}" for k, v in rest.items())]
    return "\n\n".join(part for part in parts if part)


def input_table(inputs: list[Mapping[str, Any]]) -> str:
    rows = ["| adapter | base model | file | SHA-256 |", "|---|---|---|---|"]
    for entry in inputs:
        base = entry["base_model"] if is_hub_id(entry["base_model"]) else "-"
        rows += [
            f"| {cell(entry['name'])} | {cell(base)} | {cell(file)} | `{digest}` |"
            for file, digest in entry["sha256"].items()
        ]
    return "\n".join(rows)


def file_table(files: Mapping[str, Mapping[str, Any]]) -> str:
    """The files of each group; where they lay is in the record only."""
    rows = ["| | file | SHA-256 |", "|---|---|---|"]
    for group, entry in files.items():
        rows += [
            f"| {cell(group)} | {cell(file)} | `{digest}` |"
            for file, digest in entry["sha256"].items()
        ]
    return "\n".join(rows)


def _heads(files: list[str]) -> str:
    """How to use what lies beside the adapter, in PEFT's terms."""
    listed = ", ".join(f"`{name}`" for name in files)
    return (
        "The adapter serves all tasks; what else a task saved, such as its classifier, "
        f"is in {listed}. Load the adapter into a base model with the classes of the "
        "task, then its head:\n\n"
        + _fenced(
            "model = peft.PeftModel.from_pretrained(base, folder)\n"
            f'head = safetensors.torch.load_file(f"{{folder}}/{files[0]}")\n'
            "model.get_base_model().load_state_dict(head, strict=False)",
            "python",
        )
    )


def _kept(recipe: Mapping[str, Any]) -> str:
    """What can be done with the record."""
    if "extracted" in recipe:
        return "`jaxmerge.json` names the two models and how they were compared."
    if "restored" in recipe:
        return "`jaxmerge.json` names the folder that it was restored from."
    if "learned" in recipe:
        again = "this folder again from `phi.safetensors`, without the fit"
    elif "pipeline" in recipe or "converted" in recipe:
        again = "this folder again"
    else:
        return (
            "`jaxmerge.json` names the inputs, not how they were merged: no recipe was "
            "given when this folder was written, so `jaxmerge verify` cannot repeat it."
        )
    if "own_steps" in recipe:
        names = ", ".join(f"`{name}`" for name in recipe["own_steps"])
        return (
            f"Steps of this merge are not part of jaxmerge: {names}. Where they are "
            f"registered, `jaxmerge.verify` computes {again} from `jaxmerge.json`."
        )
    return f"`jaxmerge.json` holds what `jaxmerge verify` needs to compute {again}."


def _energy_table(energy: Mapping[str, float]) -> str:
    """The share of the merge kept on average and in the worst modules."""
    if all(share == 1.0 for share in energy.values()):
        return "All of the merge: saving it truncated nothing."
    worst = sorted(energy, key=energy.__getitem__)[:5]
    mean = sum(energy.values()) / len(energy)
    return "\n".join(
        [
            "| module | share of the squared norm |",
            "|---|---|",
            f"| mean of {len(energy)} | {mean:.6f} |",
            *(f"| {cell(module)} | {energy[module]:.6f} |" for module in worst),
        ]
    )


def cell(text: str) -> str:
    """Text that cannot leave its table cell or become markup."""
    return re.sub(r"([\\`*_{}\[\]<>|#!])", r"\\\1", " ".join(str(text).split()))


def _fenced(text: str, language: str) -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
