"""Which folders may be replaced: those that hold only what a writer puts there."""

import os
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from jaxmerge.disk import steps_to
from jaxmerge.folders import Folder
from jaxmerge.io.files import CONFIG_FILE, SAFETENSORS_FILE, TORCH_FILE
from jaxmerge.io.formats import RECORD_FILE, format_of_record
from jaxmerge.untrusted.json_text import read_json

CARD_FILE = "README.md"
STATISTICS_FILE = "statistics.json"  # in every folder of statistics
STATISTICS_FORMAT = "jaxmerge-statistics-1"
MODEL_FORMAT = "jaxmerge-model-1"  # of the record in a full model

_PEFT = {CONFIG_FILE, SAFETENSORS_FILE, TORCH_FILE, CARD_FILE}  # of save_pretrained


class Replaceable(NamedTuple):
    """A kind of folder.

    Attributes:
      name: for messages.
      owned: patterns of the files that a writer of this kind put into a folder, below
        it; none if the folder is of another kind.
    """

    name: str
    owned: Callable[[Path], tuple[str, ...]]

    def foreign(self, folder: Path) -> list[str]:
        """Entries of a folder, below it, that no writer of this kind puts there.

        A link is an entry and is not followed; so is a folder with nothing in it.

        Raises:
          OSError: the folder cannot be read.
        """
        patterns = self.owned(folder)
        return [
            name
            for name in entries(folder)
            if not any(fnmatchcase(name, pattern) for pattern in patterns)
        ]


def held_in(folder: Path, path: Folder) -> bool:
    """Whether an input is or lies in an existing folder, by whatever links.

    An input folder is in it too if a link below it leads there or through it.
    """
    above = [folder.resolve(), *folder.resolve().parents]
    known: dict[Path, bool] = {}

    def lies_in(place: Path) -> bool:
        if place not in known:
            known[place] = (place.exists() and place.samefile(folder)) or (
                place != place.parent and lies_in(place.parent)
            )
        return known[place]

    seen: set[Path] = set()
    waiting = [Path(path)]
    while waiting:
        path = waiting.pop()
        if any(map(lies_in, steps_to(path))):
            return True
        real = Path(os.path.realpath(path))
        if real.is_dir() and real not in seen and real not in above:
            seen.add(real)
            waiting += _links(real)
    return False


def statistics_file(task: str) -> str:
    """Name of the file with the statistics of a task."""
    return f"{task}.safetensors"


def entries(folder: Folder, above: str = "") -> Iterator[str]:
    """Every file and link below a folder, and every folder with nothing in it."""
    with os.scandir(folder) as scanned:
        found = sorted(scanned, key=lambda entry: entry.name)
    if above and not found:
        yield above
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            yield from entries(entry.path, f"{above}{entry.name}/")
        else:
            yield f"{above}{entry.name}"


def _of_adapter(folder: Path) -> tuple[str, ...]:
    """What PEFT saves, or what the record says that was written."""
    if not any((folder / mark).is_file() for mark in (CONFIG_FILE, RECORD_FILE)):
        return ()
    record = _read(folder / RECORD_FILE)
    if record.get("format") == MODEL_FORMAT:
        return ()
    files = _PEFT | {RECORD_FILE} | _written(record).keys()
    other = format_of_record(record)
    return (*map(_literal, files), *(other.owned if other else ()))


def _of_model(folder: Path) -> tuple[str, ...]:
    record = _read(folder / RECORD_FILE)
    if record.get("format") != MODEL_FORMAT:
        return ()
    return tuple(map(_literal, {RECORD_FILE, CARD_FILE, *_written(record)}))


def _written(record: dict[str, Any]) -> dict[str, Any]:
    """The files of which a record has a digest."""
    return _table(_table(record.get("output")).get("sha256"))


def _of_statistics(folder: Path) -> tuple[str, ...]:
    record = _read(folder / STATISTICS_FILE)
    if record.get("format") != STATISTICS_FORMAT:
        return ()
    files = map(statistics_file, _table(record.get("tasks")))
    return (STATISTICS_FILE, *map(_literal, files))


ADAPTER = Replaceable("an adapter", _of_adapter)
MODEL = Replaceable("a full model that jaxmerge wrote", _of_model)
STATISTICS = Replaceable("statistics", _of_statistics)


def _links(folder: Path) -> Iterator[Path]:
    """The links below a folder."""
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            if os.path.islink(path := os.path.join(place, name)):
                yield Path(path)


def _read(path: Path) -> dict[str, Any]:
    """A record, or nothing where there is none that can be read."""
    try:
        return _table(read_json(path))
    except (OSError, ValueError):
        return {}


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _literal(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
