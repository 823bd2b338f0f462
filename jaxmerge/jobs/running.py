"""Runs recipes: a merge as a small file, or again as a merged folder records it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxmerge.folders import Folder
from jaxmerge.io.formats import RECORD_FILE
from jaxmerge.io.hub_ids import fetch, meant_as_id
from jaxmerge.io.options import ReadOptions, recorded_options
from jaxmerge.jobs.merge_record import kind, missing_steps, read_record
from jaxmerge.jobs.merging import Merged, merge
from jaxmerge.jobs.progress import Progress, silent
from jaxmerge.jobs.recipe_file import read_recipe
from jaxmerge.jobs.record_fields import ROLE_OPTIONS, SETTINGS
from jaxmerge.refusals import Option, Refusal


def run_recipe(
    recipe: Folder | Mapping[str, Any],
    *,
    out: Folder | None = None,
    hub: bool = False,
    force: bool = False,
    progress: Progress = silent,
) -> Merged:
    """Merges as a recipe says.

    A recipe lists ``adapters`` (or ``models``) with ``parameters.weight`` and
    ``parameters.density``, each a number, numbers over the layers or conditions on
    names of modules (`jaxmerge.module_values`), and a ``pipeline`` of jaxmerge or a
    ``merge_method`` of mergekit or PEFT that is the same merge here. All options of
    `jaxmerge.merge` may stand beside them, by their keywords.

    Args:
      recipe: YAML or JSON file, a table of the same shape, or a folder written by
        `jaxmerge.merge`, whose record is repeated.
      out: folder to create; by default that which the recipe names.
      hub: download adapters that the recipe names by ids on the Hub, see
        `jaxmerge.io.load_peft`; a recipe cannot ask for it.
      force: replace the folder if it holds an adapter and nothing else.
      progress: shows how far the job is.

    Returns:
      `Merged`.

    Raises:
      Refusal: an unknown name in the recipe, with the nearest known one; adapters that
        are not the files it pins; what `jaxmerge.merge` refuses.
    """
    if not isinstance(recipe, Mapping) and Path(recipe).is_dir():
        recipe = recipe_of(recipe)
    found = read_recipe(recipe)
    options = dict(found.options)
    target = out if out is not None else options.pop("out", None)
    options.pop("out", None)
    if target is None:
        raise Refusal(
            "the recipe names no folder to create; give ", Option("out", "<folder>")
        )
    if hub:
        found = replace(found, folders=_pinned(found.folders))
        options["hub"] = True
    found.check_digests(hub=hub)
    merged = merge(
        *(found.folders, found.pipeline),
        out=target,
        force=force,
        progress=progress,
        **options,
    )
    return replace(merged, notes=(*merged.notes, *found.notes))


def _pinned(folders: Sequence[str]) -> tuple[str, ...]:
    """Ids on the Hub with their commits, so that what is checked is what is merged."""
    ids = [meant_as_id(folder) for folder in folders]
    pairs = zip(folders, ids, strict=True)
    return tuple(str(fetch(named).pinned) if named else f for f, named in pairs)


def recipe_of(folder: Folder) -> dict[str, Any]:
    """The recipe with which a merged folder was made, from its own record.

    Args:
      folder: written by `jaxmerge.merge`.

    Returns:
      A table as `run_recipe` reads it. Every adapter is pinned by the SHA-256 of its
      files, one from the Hub also by its commit. `jaxmerge.recipe_text` makes a YAML
      file of it.

    Raises:
      Refusal: a learned merge, whose coefficients no recipe holds; a conversion; steps
        that are not registered in this process; a record that cannot be used.
    """
    record = read_record(folder)
    if kind(record) == "learned":
        raise Refusal(
            f"{folder}: its coefficients were learned, which a recipe does not repeat; "
            "`jaxmerge.verify` applies them again, `jaxmerge.learn` learns them"
        )
    if kind(record) == "converted":
        raise Refusal(
            f"{folder}: is a conversion, not a merge; `jaxmerge.verify` computes it "
            "again, `jaxmerge.convert` makes another"
        )
    if missing_steps(record):
        names = ", ".join(missing_steps(record))
        raise Refusal(
            f"{folder}: {names}: not a step of jaxmerge; register it first, by "
            "jaxmerge.register_step"
        )
    said, output = record["recipe"], record["output"]
    found: dict[str, Any] = {
        "adapters": [
            {
                "adapter": e.get("hub", e["path"]),
                "name": e["name"],
                "sha256": dict(e["sha256"]),
            }
            for e in record["inputs"]
        ],
        "pipeline": said["pipeline"],
    }
    for name, parameter in (("weights", "weight"), ("densities", "density")):
        numbers = said.get(name)
        if isinstance(numbers, Mapping):
            raise Refusal(
                f"{Path(folder) / RECORD_FILE}: {name} were given by a function or a "
                "table, module by module, which a recipe does not hold; "
                "`jaxmerge.verify` computes the folder again"
            )
        for entry, value in zip(found["adapters"], numbers or (), strict=False):
            entry.setdefault("parameters", {})[parameter] = value
    if said.get("seed") is not None:
        found["seed"] = said["seed"]
    if said.get("left_out"):
        found["leave_out"] = list(said["left_out"])
    for role, entry in said.get("files", {}).items():
        found[ROLE_OPTIONS[role]] = entry["path"]
    found |= said.get("sample", {})
    defaults = {"rank": None, "energy": None, "ragged": False, "dense": "error"}
    found |= _unlike(defaults, {name: output[name] for name in SETTINGS})
    reading = ReadOptions().__dict__
    read = recorded_options(record["read_options"])
    return found | _unlike({**reading, "ignore_config_keys": []}, read)


def _unlike(defaults: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Values that are not the default, or have none."""
    return {
        name: value
        for name, value in values.items()
        if name not in defaults or value != defaults[name]
    }


def recipe_text(recipe: Mapping[str, Any]) -> str:
    """A recipe as the text of a YAML file, for `run_recipe`.

    >>> print(recipe_text({"adapters": ["cars", "dtd"], "pipeline": "tsv_m"}), end="")
    adapters: [cars, dtd]
    pipeline: tsv_m
    """
    from jaxmerge.untrusted.yaml_text import as_yaml

    return as_yaml(dict(recipe))
