"""What a record describes, computed again from what it names."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxmerge.io.files import checked_file
from jaxmerge.io.options import recorded_options
from jaxmerge.jobs.converting import repeated, updates_of
from jaxmerge.jobs.merge_record import kind
from jaxmerge.jobs.reading import refusing_bad_input
from jaxmerge.jobs.record_fields import STATISTICS
from jaxmerge.tasks.record import HISTORY_FILE, PHI_FILE

if TYPE_CHECKING:
    from jaxmerge.io import Adapters
    from jaxmerge.types import Update


class CannotBeUsed(ValueError):
    """Learned coefficients that lie in a folder and cannot be applied."""


class Again(NamedTuple):
    """What is written into a folder.

    Attributes:
      updates: module -> update.
      biases: module -> LoRA bias; None where those of the adapters are averaged.
      beside: file -> its tensors, of what a learned merge keeps.
    """

    updates: "Mapping[str, Update]"
    biases: Mapping[str, Any] | None = None
    beside: Mapping[str, Mapping[str, Any]] = {}


def adapters_again(record: Mapping[str, Any], paths: Sequence[Path]) -> "Adapters":
    """The adapters of a record, read as they were, under their names."""
    from jaxmerge import io

    options: Any = recorded_options(record["read_options"])
    if kind(record) == "converted":
        with refusing_bad_input():
            adapters = repeated(paths[0], record["recipe"], options)
    else:
        stream = kind(record) == "pipeline"
        adapters = io.load_peft(paths, stream=stream, **options)
    names = tuple(entry["name"] for entry in record["inputs"])
    return dataclasses.replace(adapters, names=names)


def computed_again(
    record: Mapping[str, Any],
    adapters: "Adapters",
    folder: Path,
    read: Mapping[str, Path],
) -> Again:
    """The updates of a record.

    Args:
      record: of the folder.
      adapters: as `adapters_again` gives them.
      folder: where learned coefficients are.
      read: folders that the merge read beside them, by their role.

    Raises:
      CannotBeUsed: coefficients that do not suit the adapters.
    """
    from jaxmerge.jobs.merge_recipe import MergeRecipe

    how = kind(record)
    if how == "converted":
        return Again(*updates_of(adapters))
    if how == "pipeline":
        with refusing_bad_input():
            recipe = MergeRecipe.from_record(record["recipe"], adapters, read)
        return Again(*recipe.run(adapters))
    try:
        updates = _apply_phi(record, adapters, folder / PHI_FILE, read)
        beside = {name: _tensors(folder / name) for name in (PHI_FILE, HISTORY_FILE)}
    except (ValueError, TypeError) as error:  # AdapterError is a ValueError
        raise CannotBeUsed(str(error)) from error
    return Again(updates, beside=beside)


def _tensors(path: Path) -> dict[str, Any]:
    from jaxmerge.io.tensors import SafetensorsFile

    file = SafetensorsFile(checked_file(path))
    return {name: file.read(name) for name in file.infos}


def _apply_phi(
    record: Mapping[str, Any],
    adapters: "Adapters",
    path: Path,
    read: Mapping[str, Path],
) -> "dict[str, Update]":
    """Merges with learned coefficients as they were stored."""
    from jaxmerge.io import open_statistics
    from jaxmerge.io.tensors import SafetensorsFile, read_finite
    from jaxmerge.jobs.learn_recipe import LearnRecipe

    file = SafetensorsFile(checked_file(path))
    phis = {name: read_finite(file, name) for name in file.infos}
    stats = None
    if STATISTICS in read:
        folder = open_statistics(read[STATISTICS]).of_adapters(adapters)
        stats = folder.load(adapters.stacks)
    return LearnRecipe.from_record(record["recipe"]).apply(adapters, phis, stats)
