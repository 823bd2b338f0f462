"""What was measured of merges, and the share of the adapters' gain that each keeps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.domains4.methods import Candidate
from experiments.records import Records

Gains = dict[str, np.ndarray]  # domain -> nats that each text gains over the base, [N]


class Results:
    """The rows of one comparison.

    Attributes:
      records: its rows: of base and own adapters, and of merges.
    """

    def __init__(self, path: Path):
        self.records = Records(path)

    def reference(self, kind: str, part: str) -> dict[str, Any]:
        """The row with nats and tokens of the base, or of every adapter alone.

        Raises:
          ValueError: it was not measured yet.
        """
        row = self.records.find(kind=kind, part=part)
        if row is None:
            raise ValueError(
                f"{self.records.path}: {kind} is missing on {part}; run: "
                "python -m experiments.domains4.run"
            )
        return row

    def gains(self, row: Mapping[str, Any]) -> Gains:
        """What a row gains over the base."""
        base = self.reference("base", row["part"])["nats"]
        return {d: np.subtract(base[d], nats) for d, nats in row["nats"].items()}

    def own_gains(self, part: str) -> Gains:
        """What every adapter alone gains over the base, on texts of its own."""
        return self.gains(self.reference("own", part))

    def shares(self, row: Mapping[str, Any]) -> np.ndarray:
        """Of the adapters' gain that a merge keeps, of each domain."""
        own, found = self.own_gains(row["part"]), self.gains(row)
        return np.array([found[d].sum() / own[d].sum() for d in own])

    def kept(self, row: Mapping[str, Any]) -> float:
        """Share of the adapters' gain that a merge keeps, mean over domains."""
        return float(self.shares(row).mean())

    def chosen(self, method: str) -> Candidate:
        """The best candidate of those that were measured on validation so far."""
        rows = self.records.all(kind="merge", method=method, part="validation")
        return max(rows, key=self.kept)["candidate"]

    def tested(self) -> dict[str, Sequence[dict[str, Any]]]:
        """method -> the rows of its chosen candidate on test, one for each seed."""
        rows = self.records.all(kind="merge", part="test")
        found = {}
        for method in dict.fromkeys(row["method"] for row in rows):
            identity = {"method": method, "candidate": self.chosen(method)}
            found[method] = self.records.all(kind="merge", part="test", **identity)
        means = {m: np.mean([*map(self.kept, tested)]) for m, tested in found.items()}
        return {m: found[m] for m in sorted(means, key=lambda m: -means[m])}

    def seconds(self, method: str) -> float:
        """Of the longest merge or fit, compilation included."""
        rows = self.records.all(kind="merge", method=method)
        return max(row["seconds"] for row in rows)
