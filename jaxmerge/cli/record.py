"""The record of a merged folder, and where what it names is now."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxmerge.cli.errors import CommandError
from jaxmerge.cli.recipe import ROLE
from jaxmerge.io import AdapterError

SETTINGS = ("rank", "energy", "ragged", "dense", "dtype", "heads")


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a merge; AdapterError if the folder has none that can be used."""
    from jaxmerge.io.files import adapter_folder, checked_file
    from jaxmerge.io.staging import RECORD_FILE

    path = adapter_folder(folder) / RECORD_FILE
    if not path.exists():
        raise AdapterError(
            f"{folder}: has no {RECORD_FILE}; only folders written by jaxmerge merge "
            "can be verified"
        )
    try:
        record = json.loads(checked_file(path).read_text(encoding="utf-8"))
        usable = (
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
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AdapterError(f"{path}: not a record of a merge ({error!r})") from error
    if not usable or record["output"]["heads"] == "table":
        raise AdapterError(
            f"{path}: not made by jaxmerge merge from a pipeline, so it cannot be "
            "computed again"
        )
    return record


def kind(record: Mapping[str, Any]) -> str:
    """The entry of the recipe that says how the merge was made."""
    return "learned" if "learned" in record["recipe"] else "pipeline"


def input_paths(
    folder: Path, record: Mapping[str, Any], given: list[Path] | None
) -> list[Path]:
    """Where the adapters are, in their order."""
    recorded = [Path(entry["path"]) for entry in record["inputs"]]
    paths = given or recorded
    if len(paths) != len(recorded):
        raise CommandError(
            f"{folder}: made of {len(recorded)} adapters, {len(paths)} are given"
        )
    for path in paths:
        if not path.is_dir():
            raise AdapterError(
                f"{path}: the input is not there; say where the inputs are now: "
                f"jaxmerge verify {folder} {' '.join(entry.name for entry in recorded)}"
            )
    return paths


def statistics_path(
    folder: Path, record: Mapping[str, Any], given: Path | None
) -> Path | None:
    """Where the statistics are that the merge used; None if it used none."""
    entry = statistics_of(record)
    if entry is None and given is not None:
        raise CommandError(f"{folder}: merged without statistics; leave out --stats")
    if entry is None:
        return None
    path = given or Path(entry["path"])
    if not path.is_dir():
        raise AdapterError(
            f"{path}: the statistics are not there; say where they are now: "
            f"jaxmerge verify {folder} --stats {path.name}"
        )
    return path


def statistics_of(record: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Path and digests of the statistics that the merge used."""
    return record["recipe"].get("files", {}).get(ROLE)
