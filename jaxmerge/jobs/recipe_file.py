"""Recipes as files: what a merge is made of, in the shape that mergekit gave it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from jaxmerge.folders import Folder
from jaxmerge.io.errors import AdapterError, show
from jaxmerge.io.fields import (
    COUNT,
    DIGESTS,
    FLAG,
    TEXT,
    WHOLE,
    Items,
    check_fields,
)
from jaxmerge.io.files import sha256
from jaxmerge.io.hub_ids import fetch, hub_id, meant_as_id
from jaxmerge.io.options import ReadOptions
from jaxmerge.jobs.record_fields import DENSE, RANK, SHARE, TASK_TYPE
from jaxmerge.refusals import Refusal, nearest
from jaxmerge.spec.foreign_methods import translated
from jaxmerge.spec.layerwise import Setting, checked_setting
from jaxmerge.untrusted.yaml_text import read_yaml

_READING = tuple(option.name for option in fields(ReadOptions))
_MERGING = {  # options of `jaxmerge.merge`, and what they may be
    "leave_out": Items(TEXT),
    "seed": WHOLE,
    **dict.fromkeys(("stats", "base", "data"), TEXT),
    **dict.fromkeys(("limit", "batch", "max_length", "chunk"), COUNT),
    "task_type": TASK_TYPE,
    "rank": RANK,
    "energy": SHARE,
    "ragged": FLAG,
    "dense": DENSE,
}
_PATHS = ("stats", "base", "data")
_OWN = (
    *("models", "adapters", "pipeline", "merge_method", "parameters", "base_model"),
    *("dtype", "out_dtype", "out"),
)
_ENTRY = ("model", "adapter", "name", "parameters", "sha256")
_OF_WHOLE_MODELS = {
    *("slices", "tokenizer", "tokenizer_source", "chat_template", "modules", "merges"),
    *("architecture", "layer_range"),
}


@dataclass(frozen=True)
class RecipeFile:
    """A merge as a recipe asks for it, ready for `jaxmerge.merge`.

    Attributes:
      folders: of the adapters.
      pipeline: text of the steps.
      options: of `jaxmerge.merge`, by keyword.
      digests: of each adapter, the SHA-256 of files that the recipe pins.
      notes: what a reader should know.
    """

    folders: tuple[str, ...]
    pipeline: str
    options: Mapping[str, Any] = field(default_factory=dict)
    digests: tuple[Mapping[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    def check_digests(self, *, hub: bool = False) -> None:
        """Refuses adapters that are not those which the recipe pins.

        Args:
          hub: adapters on the Hub are downloaded for it.

        Raises:
          AdapterError: a file is missing, or has another SHA-256.
        """
        for folder, digests in zip(self.folders, self.digests, strict=True):
            named = meant_as_id(folder) if hub and digests else None
            place = Path(folder) if named is None else fetch(named).path
            for name, digest in digests.items():
                path = place if place.is_file() else place / name
                if not path.is_file():
                    raise AdapterError(f"{path}: is missing, and the recipe names it")
                if sha256(path) != digest:
                    raise AdapterError(
                        f"{path}: is not the file that the recipe names (its SHA-256 "
                        "differs); get that file, or take sha256 out of the recipe"
                    )


def read_recipe(recipe: Folder | Mapping[str, Any]) -> RecipeFile:
    """A recipe from a YAML or JSON file, or from its values.

    Paths in a file are taken from the folder of the file.

    Raises:
      Refusal: an unknown name, with the nearest known one; a value that is none.
    """
    if isinstance(recipe, Mapping):
        return _read(dict(recipe), Path(), "recipe")
    path = Path(recipe)
    try:
        values = read_yaml(path)
    except ValueError as error:
        raise Refusal(f"{path}: {error}") from error
    except OSError as error:
        raise Refusal(f"{path}: cannot be read ({error.strerror})") from error
    if not isinstance(values, dict):
        raise Refusal(
            f"{path}: no recipe; expected a table with adapters: and pipeline:"
        )
    try:
        return _read(values, path.parent, str(path))
    except AdapterError:
        raise
    except Refusal as error:
        raise Refusal(f"{path}: ", *error.message) from error


def _read(values: dict[str, Any], where: Path, name: str) -> RecipeFile:
    _check_names(values, (*_OWN, *_MERGING, *_READING))
    shared = _table(values.get("parameters", {}), "parameters")
    entries = list(_entries(values))
    weights = _settings(entries, shared, "weight")
    densities = _settings(entries, shared, "density")
    shared = {k: v for k, v in shared.items() if k not in ("weight", "density")}
    options = {k: values[k] for k in (*_MERGING, *_READING) if k in values}
    for option in _MERGING.keys() & options.keys():
        if isinstance(options[option], Path):
            options[option] = str(options[option])
        check_fields(options[option], _MERGING[option], name, option)
    options |= {k: str(where / _text(options[k], k)) for k in _PATHS if k in options}
    if "out" in values:
        options["out"] = where / _text(values["out"], "out")
    if any("name" in entry for entry in entries):
        options["names"] = [_name(entry) for entry in entries]
    dtype, notes = _dtype(values)
    if dtype is not None:
        options["dtype"] = dtype
    if ("pipeline" in values) == ("merge_method" in values):
        raise Refusal("give one of pipeline: <steps> and merge_method: <name>")
    if "pipeline" in values:
        pipeline = _text(values["pipeline"], "pipeline")
        for other in shared:
            raise Refusal(
                f"parameters.{other}: a pipeline has its parameters in its steps; only "
                "weight and density are given here"
            )
    else:
        method = _text(values["merge_method"], "merge_method")
        ones = [1.0] * len(entries)
        found = translated(method, weights or ones, densities, shared)
        pipeline, weights, densities = found.pipeline, found.weights, found.densities
        options = {**found.options, **options}
        notes = (*notes, *found.notes)
    if weights is not None:
        options["weights"] = weights
    if densities is not None:
        options["densities"] = densities
    return RecipeFile(
        folders=tuple(_folder(where, _place(entry)) for entry in entries),
        pipeline=pipeline,
        options=options,
        digests=tuple(_digests(entry, name) for entry in entries),
        notes=notes,
    )


def _entries(values: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """The entries of the adapters; the base that mergekit lists is none of them."""
    given = [key for key in ("adapters", "models") if key in values]
    if len(given) != 1:
        raise Refusal("give the adapters once, as adapters: [..] (or models: [..])")
    (key,) = given
    listed = values[key]
    if not isinstance(listed, list) or not listed:
        raise Refusal(f"{key}: expected a list of at least one adapter")
    base = values.get("base_model")
    for index, item in enumerate(listed):
        entry = {"adapter": item} if isinstance(item, str) else item
        where = f"{key}[{index}]"
        entry = _table(entry, where)
        _check_names(entry, _ENTRY, f"{where}.")
        if ("model" in entry) == ("adapter" in entry):
            raise Refusal(f"{where}: expected the folder of an adapter, as adapter: ..")
        if base is None or _place(entry) != base:
            yield entry


def _settings(
    entries: Sequence[Mapping[str, Any]], shared: Mapping[str, Any], name: str
) -> list[Setting] | None:
    """The weights, or densities, of all tasks; None if there are none at all."""
    own = [_table(entry.get("parameters", {}), "parameters") for entry in entries]
    for parameters in own:
        _check_names(parameters, ("weight", "density"), "parameters.")
    found = [parameters.get(name, shared.get(name)) for parameters in own]
    if all(value is None for value in found):
        return None
    for entry, value in zip(entries, found, strict=True):
        if value is None:
            raise Refusal(
                f"{_place(entry)}: has no {name}, others have; give each one its own, "
                f"or one for all in parameters.{name}"
            )
    return [checked_setting(value, name) for value in found]


def _dtype(values: Mapping[str, Any]) -> tuple[str | None, tuple[str, ...]]:
    """The dtype of what is written."""
    given = {
        key: _text(values[key], key) for key in ("dtype", "out_dtype") if key in values
    }
    if given.get("dtype", "float32") == "float32" or "out_dtype" not in given:
        return given.get("out_dtype", given.get("dtype")), ()
    note = f"computed in float32, not in {given['dtype']}, and written in "
    return given["out_dtype"], (f"{note}{given['out_dtype']}",)


def _check_names(values: Mapping[str, Any], known: Sequence[str], of: str = "") -> None:
    for name in values:
        if name in known:
            continue
        if name in _OF_WHOLE_MODELS:
            raise Refusal(f"{of}{name}: is of merges of whole models, not of adapters")
        near = nearest(name, known)
        meant = f"; did you mean {near!r}?" if near else f"; known: {', '.join(known)}"
        raise Refusal(f"{of}{show(name)[1:-1]}: is not known{meant}")


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise Refusal(f"{where}: expected a table, got {show(value)}")
    return dict(value)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str | Path) or not str(value):
        raise Refusal(f"{where}: expected text, got {show(value)}")
    return str(value)


def _place(entry: Mapping[str, Any]) -> str:
    return _text(entry.get("adapter", entry.get("model")), "adapter")


def _folder(where: Path, place: str) -> str:
    """A folder from that of the recipe, or an id on the Hub as it stands."""
    path = where / place
    local = hub_id(place) is None or path.exists() or path.parent.is_dir()
    return str(path) if local else place


def _name(entry: Mapping[str, Any]) -> str:
    return _text(entry.get("name", Path(_place(entry)).name), "name")


def _digests(entry: Mapping[str, Any], where: str) -> dict[str, str]:
    digests = entry.get("sha256", {})
    check_fields(digests, DIGESTS, where, "sha256")
    return dict(digests)
