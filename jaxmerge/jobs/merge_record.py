"""The record of a merged folder, and where what it names is now."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxmerge.folders import Folder
from jaxmerge.io import AdapterError
from jaxmerge.io.errors import listing
from jaxmerge.io.fields import check_fields
from jaxmerge.jobs.record_fields import RECIPES, RECORD, ROLE_OPTIONS, STATISTICS
from jaxmerge.refusals import Option, Refusal
from jaxmerge.spec import STEPS, Pipeline, PipelineError, parse
from jaxmerge.spec.checks import check_count


def read_record(folder: Folder) -> dict[str, Any]:
    """The record of a merge, every field checked.

    Raises:
      AdapterError: the folder has none, or none that can be used; names the field.
    """
    from jaxmerge.io.files import read_object
    from jaxmerge.io.formats import RECORD_FILE
    from jaxmerge.io.places import adapter_place
    from jaxmerge.io.replaceable import MODEL_FORMAT

    path = adapter_place(Path(folder)) / RECORD_FILE
    if not path.exists():
        raise AdapterError(
            f"{folder}: has no {RECORD_FILE}; only folders written by `jaxmerge.merge` "
            "or `jaxmerge.learn` can be verified"
        )
    record = read_object(path)
    if record.get("format") == MODEL_FORMAT:
        raise AdapterError(
            f"{folder}: holds a full model, whose record has the digests of what it "
            "was made from and of its files; verify the adapter that was put into it"
        )
    if str(record.get("format")).startswith("jaxmerge-"):
        raise AdapterError(
            f"{folder}: is a checkpoint, not a merge, and has no record of one; verify "
            "the folder that it was converted from"
        )
    check_fields(record, RECORD, path)
    if "extracted" in record["recipe"]:
        raise AdapterError(
            f"{path}: is of an adapter between two full models; compute it again with "
            "the options of the record to compare"
        )
    if "restored" in record["recipe"]:
        raise AdapterError(
            f"{path}: is of an adapter restored from compressed ones; restore it again "
            "to compare"
        )
    kinds = [name for name in RECIPES if name in record["recipe"]]
    if not kinds:
        raise AdapterError(
            f"{path}: does not say how the merge was made, so it cannot be computed "
            "again; merge its inputs once more by a command, or save them in Python "
            "with card=<the pipeline as text>"
        )
    if len(kinds) > 1:
        raise AdapterError(
            f"{path}: field recipe: has {' and '.join(kinds)}, expected one of them"
        )
    check_fields(record["recipe"], RECIPES[kinds[0]], path, "recipe")
    if record["output"]["heads"] == "table":
        raise AdapterError(
            f"{path}: field output.heads: a table of saved modules, which the record "
            "does not hold, so the merge cannot be computed again"
        )
    _check_inputs(record, path)
    _check_recipe(record, path)
    return record


def _check_inputs(record: Mapping[str, Any], path: Path) -> None:
    from jaxmerge.io.options import checked_options

    checked_options(record["read_options"], path, "read_options")
    names = [entry["name"] for entry in record["inputs"]]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise AdapterError(
                f"{path}: field inputs[{index}].name: {name!r} is that of another input"
            )


def _check_recipe(record: Mapping[str, Any], path: Path) -> None:
    """What the fields of a recipe must be together."""
    recipe = record["recipe"]
    for name in recipe.get("own_steps", {}):
        if name in STEPS and STEPS[name].own is None:
            raise AdapterError(
                f"{path}: field recipe.own_steps.{name}: is a step of jaxmerge"
            )
        if name not in steps_named(record):
            raise AdapterError(
                f"{path}: field recipe.own_steps.{name}: is not in the pipeline"
            )
    if kind(record) == "converted":
        if len(record["inputs"]) > 1:
            raise AdapterError(f"{path}: field inputs: a conversion is of one adapter")
        return
    if missing_steps(record):
        return  # without them the text cannot be read
    if kind(record) == "learned":
        from jaxmerge.jobs.learn_recipe import LearnRecipe

        try:
            learned = LearnRecipe.from_record(recipe)
        except Refusal as error:
            raise AdapterError(f"{path}: field recipe: ", *error.message) from error
        _check_files(learned.pipeline, files_of(record), path)
        return
    try:
        pipeline = parse(recipe["pipeline"])
    except PipelineError as error:
        said = error.message
        raise AdapterError(f"{path}: field recipe.pipeline: ", *said) from error
    _check_pipeline(pipeline, record, path)


def _check_pipeline(pipeline: Pipeline, record: Mapping[str, Any], path: Path) -> None:
    recipe, tasks = record["recipe"], len(record["inputs"])
    for name in ("weights", "densities"):
        try:
            check_count(recipe.get(name), tasks, name)
        except PipelineError as error:
            raise AdapterError(f"{path}: field recipe.{name}: {error}") from error
    if pipeline.learned:
        raise AdapterError(
            f"{path}: field recipe.pipeline: {pipeline.text!r} has coefficients to "
            "learn; a learned merge has the field recipe.learned in its place"
        )
    if pipeline.random and recipe.get("seed") is None:
        raise AdapterError(
            f"{path}: field recipe.seed: is missing, and {pipeline.text!r} draws at "
            "random"
        )
    if pipeline.each and recipe.get("densities") is None:
        raise AdapterError(
            f"{path}: field recipe.densities: is missing, and {pipeline.text!r} takes "
            "a density of each input"
        )
    _check_files(pipeline, recipe.get("files", {}), path)


def _check_files(pipeline: Pipeline, files: Mapping[str, Any], path: Path) -> None:
    """Refuses what a merge does not read beside the adapters, and what is missing."""
    needed = {STATISTICS} if pipeline.statistics else set[str]()
    needed |= {"base", "data"} if pipeline.model else set[str]()
    if set(files) != needed:
        expected = " and ".join(sorted(needed)) or "nothing"
        raise AdapterError(
            f"{path}: field recipe.files: {pipeline.text!r} reads {expected} beside "
            f"the adapters, found {sorted(files)}"
        )


def kind(record: Mapping[str, Any]) -> str:
    """The entry of the recipe that says how the folder was made."""
    return next(name for name in RECIPES if name in record["recipe"])


def steps_named(record: Mapping[str, Any]) -> set[str]:
    """What stands in the text of the pipeline where steps stand."""
    if kind(record) == "converted":
        return set()
    segments = record["recipe"][kind(record)].split("|")
    return {segment.partition("(")[0].strip() for segment in segments}


def missing_steps(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Steps of the merge that are not of jaxmerge, nor registered in this process."""
    return tuple(x for x in record["recipe"].get("own_steps", {}) if x not in STEPS)


def input_paths(
    folder: Folder, record: Mapping[str, Any], given: Sequence[Folder] | None
) -> list[Path]:
    """Where the adapters are, in their order."""
    recorded = [Path(entry["path"]) for entry in record["inputs"]]
    paths = [Path(path) for path in given] if given else recorded
    if len(paths) != len(recorded):
        raise Refusal(
            f"{folder}: made of {len(recorded)} adapters, {len(paths)} are given"
        )
    for path in paths:
        if not path.exists():
            raise AdapterError(
                f"{path}: the input is not there; say where the inputs are now, in "
                f"this order: {' '.join(entry.name for entry in recorded)}"
                f"{_from(record)}"
            )
    return paths


def _from(record: Mapping[str, Any]) -> str:
    """Where inputs were downloaded, as the end of a message."""
    ids = [entry["hub"] for entry in record["inputs"] if "hub" in entry]
    return f"; from the Hub were downloaded {listing(ids)}" if ids else ""


def paths_read(
    folder: Folder, record: Mapping[str, Any], given: Mapping[str, Folder | None]
) -> dict[str, Path]:
    """Where the folders are that the merge read beside the adapters, by their role.

    What a fit read plays no part but for statistics: its coefficients are stored.

    Args:
      folder: of the merge.
      record: its record.
      given: role -> where its folder is now.
    """
    entries = files_of(record)
    for role, path in given.items():
        if path is not None and role not in entries:
            raise Refusal(
                f"{folder}: computed without {role}; leave out ",
                Option(ROLE_OPTIONS[role]),
            )
    paths = {}
    for role, entry in entries.items():
        paths[role] = path = Path(given.get(role) or entry["path"])
        if not path.is_dir():
            raise AdapterError(
                f"{path}: the folder of {role} is not there; say where it is now by ",
                Option(ROLE_OPTIONS[role], path.name),
            )
    return paths


def files_of(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Role -> path and digests of what the merge depends on beside the adapters."""
    files = record["recipe"].get("files", {})
    if kind(record) == "learned":
        return {role: entry for role, entry in files.items() if role == STATISTICS}
    return files
