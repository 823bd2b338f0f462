"""Adapters on disk, whichever of the two formats they are in."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxmerge.io.replaceable import RECORD_FILE

if TYPE_CHECKING:
    from jaxmerge.io.adapters import Adapters


def is_orbax(path: str | os.PathLike[str]) -> bool:
    """Whether a folder is an orbax checkpoint written by jaxmerge."""
    try:
        record = json.loads((Path(path) / RECORD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return str(record.get("format", "")).startswith("jaxmerge-orbax")


def load_stored(
    path: str | os.PathLike[str], **read: Any
) -> "Adapters | dict[str, Any]":
    """Reads one PEFT folder, its heads included, or an orbax checkpoint.

    Args:
      path: the folder.
      **read: options of `jaxmerge.io.load_peft`; nothing is merged, so that no policy
        for saved modules is needed.
    """
    from jaxmerge.io.orbax import load_orbax
    from jaxmerge.io.read import load_peft

    if is_orbax(path):
        return load_orbax(path)
    if read.get("heads", "error") == "error":
        read = {**read, "heads": "keep"}
    return load_peft([path], **read)
