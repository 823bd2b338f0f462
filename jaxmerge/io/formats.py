"""Formats of folders besides PEFT's: how each is told, read and written.

One row of `FORMATS` is all that the rest of the package needs to know of a format:
`jaxmerge.convert` reads and writes it, `jaxmerge.inspect` reads it, and a folder of it
may be replaced. Nothing here imports JAX or the libraries of the formats.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxmerge.folders import Folder
from jaxmerge.untrusted.json_text import read_json

FormatName = Literal["orbax"]
RECORD_FILE = "jaxmerge.json"  # in every adapter folder that this package writes


class Format(NamedTuple):
    """A format of folders.

    Attributes:
      says: what such a folder is, for messages.
      mark: what "format" in its record begins with.
      owned: patterns of the files that its writer puts into a folder beside the record;
        a star stands for folders too.
      load: ``module:function`` that reads a folder: adapters, or module -> update.
      save: ``module:function`` of ``(folder, adapters, force=..)``.
      dtype: of the tensors that it writes.
    """

    says: str
    mark: str
    owned: tuple[str, ...]
    load: str
    save: str
    dtype: str


FORMATS: dict[FormatName, Format] = {
    "orbax": Format(
        says="an orbax checkpoint",
        mark="jaxmerge-orbax",
        owned=(
            *("leaves/_*", "leaves/manifest.ocdbt", "leaves/commit_success.txt"),
            *("leaves/d/*", "leaves/array_metadatas/*", "leaves/ocdbt.process_*/*"),
        ),
        load="jaxmerge.io.orbax:load_orbax",
        save="jaxmerge.io.orbax:save_orbax",
        dtype="float32",
    ),
}


def format_of(path: Folder) -> Format | None:
    """The format of a folder by its record; None for PEFT's, and for no record."""
    try:
        record = read_json(Path(path) / RECORD_FILE)
    except (OSError, ValueError):
        return None
    return format_of_record(record)


def format_of_record(record: Any) -> Format | None:
    """The format that a record names."""
    named = str(record.get("format", "")) if isinstance(record, Mapping) else ""
    found = (each for each in FORMATS.values() if named.startswith(each.mark))
    return next(found, None)


def resolve(target: str) -> Any:
    """Imports what ``module:function`` names."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
