"""What is put into a full model: an adapter in any form, and further saved modules."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxmerge.folders import Folder
from jaxmerge.jobs.reading import ReadOptions, one_adapter
from jaxmerge.refusals import Refusal

if TYPE_CHECKING:
    import numpy as np

    from jaxmerge.io.base_model import BaseModel
    from jaxmerge.io.changes import Changes
    from jaxmerge.io.tied_weights import Tie


class Given(NamedTuple):
    """What changes a model, and where it came from.

    Attributes:
      changes: of the weights of the model.
      task_type: PEFT's, None where nothing says it.
      inputs: of the record: the adapter.
      read_options: of the record: how it was read.
      files: of the record: role -> path and digests of what was read beside it.
      notes: what reading changed or left out.
    """

    changes: "Changes"
    task_type: str | None
    inputs: list[dict[str, Any]]
    read_options: dict[str, Any]
    files: dict[str, dict[str, Any]]
    notes: tuple[str, ...]


def read_changes(
    adapter: Folder,
    head: Folder | None,
    model: "BaseModel",
    tie: "Tie | None",
    task: str | None,
    read: ReadOptions,
) -> Given:
    """Reads an adapter, or the weight deltas of a merge, and fits it to a model."""
    from jaxmerge.io.card import inputs_of
    from jaxmerge.io.changes import changes_of
    from jaxmerge.io.output import DELTA_FILE
    from jaxmerge.io.places import adapter_place
    from jaxmerge.io.stored import load_stored

    path = adapter_place(adapter)
    further, files = _further(head)
    if (path / DELTA_FILE).is_file():
        return _deltas(path / DELTA_FILE, further, files, model, read)
    options: ReadOptions = {**read, "heads": "first"}
    found = one_adapter(load_stored(path, **options), path, task)
    heads = {**found.heads[0], **further}
    changes = changes_of(found, heads, model, tie)
    return Given(
        changes,
        found.sources[0].task_type,
        inputs_of(found),
        asdict(found.options),
        files,
        (*found.notes, *changes.notes),
    )


def _further(
    head: Folder | None,
) -> tuple[dict[str, "np.ndarray"], dict[str, dict[str, Any]]]:
    """Saved modules of a file, and what a record says of it."""
    from jaxmerge.io.files import checked_file, sha256
    from jaxmerge.io.tensors import FLOATING, SafetensorsFile, read_finite

    if head is None:
        return {}, {}
    path = checked_file(Path(head))
    file = SafetensorsFile(path)
    strange = [k for k in file.infos if ".lora_" in k or k.startswith("base_model.")]
    if strange:
        raise Refusal(
            f"{path}: holds tensors of an adapter ({strange[0]!r}), not saved modules; "
            "give a file of the folder heads of a merge"
        )
    found = {
        key: read_finite(file, key) if info.dtype in FLOATING else file.read(key)
        for key, info in file.infos.items()
    }
    digests = {path.name: sha256(path)}
    return found, {"head": {"path": str(path.parent), "sha256": digests}}


def _deltas(
    path: Path,
    further: Mapping[str, "np.ndarray"],
    files: dict[str, dict[str, Any]],
    model: "BaseModel",
    read: ReadOptions,
) -> Given:
    from jaxmerge.io.changes import deltas_of
    from jaxmerge.io.files import sha256
    from jaxmerge.io.options import ReadOptions as Reading
    from jaxmerge.io.tensors import SafetensorsFile

    options = Reading(
        strip_prefix=read.get("strip_prefix", ""), add_prefix=read.get("add_prefix", "")
    )
    changes = deltas_of(SafetensorsFile(path), model, options)
    known = model.tensors.infos
    for name, value in further.items():
        if name in known and known[name].shape != value.shape:
            raise Refusal(
                f"{model.folder}: {name!r} is {list(known[name].shape)}, that of the "
                f"head {list(value.shape)}"
            )
    changes = replace(
        changes,
        replaced={name: value for name, value in further.items() if name in known},
        new={name: value for name, value in further.items() if name not in known},
    )
    entry = {
        "name": path.parent.name,
        "path": str(path.parent),
        "base_model": None,
        "revision": None,
        "weight_file": path.name,
        "sha256": {path.name: sha256(path)},
    }
    names = {"strip_prefix": options.strip_prefix, "add_prefix": options.add_prefix}
    return Given(changes, None, [entry], names, files, changes.notes)
