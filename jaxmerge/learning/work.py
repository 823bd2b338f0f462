"""The folder in which a fit keeps its checkpoints, and what it belongs to."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_RECORD = "learn.json"


class Work:
    """A folder for one fit, so that the same command goes on where it was stopped.

    Args:
      folder: created if needed.
      identity: as JSON values, everything that determines the fit; ``steps`` may grow.

    Raises:
      ValueError: the folder is another fit's or nobody's, or cannot be made.
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, Any]):
        self.folder = Path(folder)
        self._path = self.folder / _RECORD
        known = self._read()
        if known is not None:
            self._refuse_other(known["identity"], identity)
        self.anchors: list[float] | None = None if known is None else known["anchors"]
        self._identity = dict(identity)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"{self.folder}: cannot be made ({error.strerror}); pass another "
                "work=<folder>"
            ) from None

    @property
    def checkpoints(self) -> Path:
        """Where orbax keeps the state."""
        return self.folder / "checkpoints"

    def start(self, anchors: list[float]) -> None:
        """Notes what the checkpoints will belong to."""
        self.anchors = anchors
        content = {"identity": self._identity, "anchors": anchors}
        unfinished = self._path.with_suffix(".new")
        unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        os.replace(unfinished, self._path)

    def remove(self) -> None:
        """Removes the folder with everything in it."""
        shutil.rmtree(self.folder)

    def _read(self) -> dict[str, Any] | None:
        if not os.path.lexists(self.folder):
            return None
        if not self._path.is_file():
            unfinished = self._path.with_suffix(".new")
            if not self.folder.is_dir() or set(self.folder.iterdir()) - {unfinished}:
                raise ValueError(
                    f"{self.folder}: not that of a fit; pass another work=<folder>"
                )
            return None
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            identity, anchors = dict(content["identity"]), list(content["anchors"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self._path}: not the record of a fit ({error!r}); remove the folder"
            ) from None
        return {"identity": identity, "anchors": anchors}

    def _refuse_other(self, known: dict[str, Any], now: Mapping[str, Any]) -> None:
        now = json.loads(json.dumps(now))
        for name in sorted(known.keys() | now.keys()):
            before, after = known.get(name), now.get(name)
            if before == after or (name == "steps" and before <= after):
                continue
            is_value = isinstance(before, int | float | str)
            values = f" ({before}, now {after})" if is_value else ""
            raise ValueError(
                f"{self.folder}: holds checkpoints of a fit with other {name}{values}; "
                "remove it, or pass another work=<folder>"
            )
