"""Adapters on disk, whichever of the two formats they are in."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxmerge.io import Adapters


def is_orbax(path: Path) -> bool:
    """Whether a folder is an orbax checkpoint written by jaxmerge."""
    from jaxmerge.io.replaceable import RECORD_FILE

    try:
        record = json.loads((path / RECORD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return str(record.get("format", "")).startswith("jaxmerge-orbax")


def load_stored(path: Path, read: dict[str, Any]) -> "Adapters | dict[str, Any]":
    """Reads one PEFT folder, its heads included, or an orbax checkpoint."""
    from jaxmerge import io

    if is_orbax(path):
        return io.load_orbax(path)
    if read["heads"] == "error":  # nothing is merged, so no policy is needed
        read = {**read, "heads": "keep"}
    return io.load_peft([path], **read)
