"""The record of a merged folder, and where what it names is now."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxmerge.folders import Folder
from jaxmerge.io import AdapterError
from jaxmerge.refusals import Option, Refusal

_OPTIONS = {"statistics": "stats", "base": "base", "data": "data"}  # role -> option
_SAMPLE = {"batch", "limit", "max_length"}
SETTINGS = ("rank", "energy", "ragged", "dense", "dtype", "heads")


def read_record(folder: Folder) -> dict[str, Any]:
    """The record of a merge; AdapterError if the folder has none that can be used."""
    from jaxmerge.io.files import adapter_folder, checked_file
    from jaxmerge.io.formats import RECORD_FILE

    path = adapter_folder(Path(folder)) / RECORD_FILE
    if not path.exists():
        raise AdapterError(
            f"{folder}: has no {RECORD_FILE}; only folders written by `jaxmerge.merge` "
            "or `jaxmerge.learn` can be verified"
        )
    try:
        record = json.loads(checked_file(path).read_text(encoding="utf-8"))
        tells_how = not record["recipe"].keys().isdisjoint(("pipeline", "learned"))
        usable = tells_how and (
            record["format"] == 1
            and isinstance(record["recipe"][kind(record)], str)
            and all(
                entry["path"] and dict(entry["sha256"])
                for entry in (
                    *record["inputs"],
                    *record["recipe"].get("files", {}).values(),
                )
            )
            and all(name in record["output"] for name in (*SETTINGS, "sha256"))
            and isinstance(record["read_options"], dict)
            and isinstance(record["versions"], dict)
            and files_of(record).keys() <= _OPTIONS.keys()
            and record["recipe"].get("sample", {}).keys() <= _SAMPLE
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AdapterError(f"{path}: not a record of a merge ({error!r})") from error
    if not tells_how:
        raise AdapterError(
            f"{path}: does not say how the merge was made, so it cannot be computed "
            "again; save it with card=<the pipeline as text>"
        )
    if not usable or record["output"]["heads"] == "table":
        raise AdapterError(
            f"{path}: not made by `jaxmerge.merge` from a pipeline, so it cannot be "
            "computed again"
        )
    return record


def kind(record: Mapping[str, Any]) -> str:
    """The entry of the recipe that says how the merge was made."""
    return "learned" if "learned" in record["recipe"] else "pipeline"


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
        if not path.is_dir():
            raise AdapterError(
                f"{path}: the input is not there; say where the inputs are now, in "
                f"this order: {' '.join(entry.name for entry in recorded)}"
            )
    return paths


def paths_read(
    folder: Folder, record: Mapping[str, Any], given: Mapping[str, Folder | None]
) -> dict[str, Path]:
    """Where the folders are that the merge read beside the adapters, by their role.

    What a fit read plays no part: its coefficients are stored.

    Args:
      folder: of the merge.
      record: its record.
      given: role -> where its folder is now.
    """
    entries = files_of(record)
    for role, path in given.items():
        if path is not None and role not in entries:
            raise Refusal(
                f"{folder}: computed without {role}; leave out ", Option(_OPTIONS[role])
            )
    paths = {}
    for role, entry in entries.items():
        paths[role] = path = Path(given.get(role) or entry["path"])
        if not path.is_dir():
            raise AdapterError(
                f"{path}: the folder of {role} is not there; say where it is now by ",
                Option(_OPTIONS[role], path.name),
            )
    return paths


def files_of(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Role -> path and digests of what the merge depends on beside the adapters."""
    if kind(record) == "learned":
        return {}
    return record["recipe"].get("files", {})
