"""Results as JSON lines: written as they come, and found again by what they are of."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


class Records:
    """The rows of one file; a row is identified by everything but what was measured."""

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            self.rows = [json.loads(line) for line in lines]

    def find(self, **identity: Any) -> dict[str, Any] | None:
        """The first row with these values, None if there is none yet."""
        return next(iter(self.all(**identity)), None)

    def all(self, **identity: Any) -> list[dict[str, Any]]:
        """Every row with these values, in the order of the file."""
        wanted = json.loads(json.dumps(identity))
        return [
            row
            for row in self.rows
            if all(row.get(name) == value for name, value in wanted.items())
        ]

    def add(self, **row: Any) -> dict[str, Any]:
        """Appends a row to the file at once."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(json.loads(json.dumps(row)))
        return self.rows[-1]


def packed(right: Mapping[str, np.ndarray]) -> dict[str, list[Any]]:
    """Which answers are right as JSON: task -> their number, and bits in base 64."""
    return {
        task: [len(found), base64.b64encode(np.packbits(found)).decode()]
        for task, found in right.items()
    }


def unpacked(stored: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """What `packed` was given."""
    return {
        task: np.unpackbits(
            np.frombuffer(base64.b64decode(bits), np.uint8), count=count
        ).astype(bool)
        for task, (count, bits) in stored.items()
    }
