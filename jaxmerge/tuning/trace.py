"""What a search has tried: a line of JSON for each merge, written when it is scored."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from jaxmerge.disk import claim, sync
from jaxmerge.io.staging import staged_file
from jaxmerge.learning.work import refuse_other
from jaxmerge.refusals import Option, Refusal
from jaxmerge.tuning.families import Point
from jaxmerge.untrusted.json_text import read_json

SETTINGS_FILE, TRACE_FILE = "tune.json", "trace.jsonl"


class Scored(NamedTuple):
    """What a merge is worth.

    Attributes:
      score: mean over the seeds; None where the merge could not be scored.
      spread: standard deviation over the seeds; None without several of them.
      tasks: task -> its part of the score, where there is one.
      seconds: that it took.
      error: why there is no score.
    """

    score: float | None
    spread: float | None = None
    tasks: Mapping[str, float] = {}
    seconds: float = 0.0
    error: str = ""


class Row(NamedTuple):
    """A merge that was tried."""

    point: Point
    scored: Scored

    def to_json(self) -> dict[str, Any]:
        """As JSON values; what plays no part is left out."""
        point, scored = self.point._asdict(), self.scored._asdict()
        scored["seconds"] = round(self.scored.seconds, 3)
        told = (point | scored).items()
        empty = (None, {}, (), "")
        return {k: v for k, v in told if k == "score" or v not in empty}


class Trace:
    """All that a search has tried, in a folder if it is to outlast the process.

    The folder is locked until `close`, so that two searches do not share it.

    Args:
      folder: created if needed; None keeps everything in memory.
      settings: as JSON values, everything that determines the scores and their order.

    Raises:
      Refusal: the folder is that of a search with other settings, or of nothing that
        is known here, or another process uses it.
    """

    def __init__(self, folder: Path | None, settings: Mapping[str, Any]):
        self.folder = folder
        self.rows: list[Row] = []
        self._lock: int | None = None
        if folder is not None:
            self._open(folder, settings)
        self._known = {row.point: row.scored for row in self.rows}

    def __enter__(self) -> "Trace":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives up the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def find(self, point: Point) -> Scored | None:
        """What a merge was worth; None if it was not tried."""
        return self._known.get(point)

    @property
    def seconds(self) -> float:
        """That all merges took."""
        return sum(row.scored.seconds for row in self.rows)

    def add(self, row: Row) -> None:
        """Keeps one more merge; on the disk when this returns."""
        self.rows.append(row)
        self._known[row.point] = row.scored
        if self.folder is None:
            return
        path = self.folder / TRACE_FILE
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row.to_json()) + "\n")
        sync(path)

    def _open(self, folder: Path, settings: Mapping[str, Any]) -> None:
        another = ("; pass another ", Option("work", "<folder>"))
        empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
        if not empty and not (folder / SETTINGS_FILE).is_file():
            raise Refusal(f"{folder}: not that of a search", *another)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = claim(folder)
        except BlockingIOError:
            raise Refusal(f"{folder}: another search is running", *another) from None
        try:
            path = folder / SETTINGS_FILE
            if path.is_file():
                refuse_other(folder, "a search", _read_settings(path), settings)
            else:
                with staged_file(path) as staged:
                    staged.write_text(json.dumps(settings, indent=2) + "\n")
            self.rows = _read_rows(folder / TRACE_FILE)
        except BaseException:
            self.close()
            raise


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        return dict(read_json(path))
    except (ValueError, TypeError) as error:
        raise Refusal(
            f"{path}: not the settings of a search ({error}); remove the folder"
        ) from None


def _read_rows(path: Path) -> list[Row]:
    """The rows of a file; a line that a stopped run left unfinished is cut off."""
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        os.truncate(path, len(whole))
    try:
        return [_row(json.loads(line)) for line in whole.splitlines()]
    except (ValueError, KeyError, TypeError) as error:
        raise Refusal(
            f"{path}: not the trace of a search ({error!r}); remove the folder"
        ) from None


def _row(line: Mapping[str, Any]) -> Row:
    weights = line.get("weights")
    point = Point(
        line["pipeline"],
        None if weights is None else tuple(weights),
        tuple(line.get("left_out", ())),
    )
    scored = {k: line[k] for k in Scored._fields if k in line}
    return Row(point, Scored(**scored))
