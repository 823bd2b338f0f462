"""Computes a merged folder again from its own record."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxmerge.folders import Folder
from jaxmerge.io.files import sha256
from jaxmerge.io.formats import RECORD_FILE
from jaxmerge.io.replaceable import CARD_FILE
from jaxmerge.jobs.compare import Difference, differences
from jaxmerge.jobs.merge_record import (
    files_of,
    input_paths,
    kind,
    missing_steps,
    paths_read,
    read_record,
)
from jaxmerge.jobs.progress import Progress, silent
from jaxmerge.jobs.record_fields import SETTINGS
from jaxmerge.jobs.recorded import (
    card_differences,
    files_differences,
    notes,
    record_differences,
    unnamed_files,
)
from jaxmerge.jobs.repeating import CannotBeUsed, adapters_again, computed_again
from jaxmerge.tasks.record import PHI_FILE, names_read

if TYPE_CHECKING:
    from jaxmerge.io import Adapters


@dataclass(frozen=True)
class Verified:
    """What differs between a folder and its own record.

    Attributes:
      path: the folder.
      record: of the merge.
      differences: all of them.
      recomputed: whether the merge was computed again; not if its inputs changed.
      tolerance: relative difference of a module that counts as rounding.
      read_by_fit: role -> "unchanged", "changed" or "missing", of what a fit read.
      missing_steps: steps that are not of jaxmerge, nor registered in this process, so
        that only digests were compared.
      notes: what the folder or its record hold that nothing can be compared with.
    """

    path: str
    record: Mapping[str, Any]
    differences: tuple[Difference, ...]
    recomputed: bool
    tolerance: float
    read_by_fit: dict[str, str]
    missing_steps: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def serious(self) -> tuple[Difference, ...]:
        """Differences that are more than rounding."""
        return tuple(
            difference
            for difference in self.differences
            if difference.size is None or not difference.size <= self.tolerance
        )

    @property
    def ok(self) -> bool:
        """Whether the merge was found again, up to rounding."""
        return not self.serious and not self.missing_steps

    @property
    def largest(self) -> float:
        """The largest relative difference that was measured."""
        sizes = (d.size for d in self.differences if d.size is not None)
        return max(sizes, default=0.0)

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        then = self.record["versions"]
        return {
            "path": self.path,
            "ok": self.ok,
            "identical": self.ok and not self.differences,
            "recomputed": self.recomputed,
            "missing_steps": list(self.missing_steps),
            "largest_difference": self.largest,
            "tolerance": self.tolerance,
            "differences": [found._asdict() for found in self.differences],
            "recipe": self.record["recipe"],
            "inputs": {e["name"]: e["path"] for e in self.record["inputs"]},
            "read_by_fit": self.read_by_fit,
            "notes": list(self.notes),
            "versions": {"then": then, "now": {name: version(name) for name in then}},
        }


def verify(
    folder: Folder,
    inputs: Sequence[Folder] | None = None,
    *,
    stats: Folder | None = None,
    base: Folder | None = None,
    data: Folder | None = None,
    tolerance: float | None = None,
    progress: Progress = silent,
) -> Verified:
    """Computes a merged folder again and compares.

    Inputs, statistics and outputs are also checked against the SHA-256 in its record,
    and the record against what was read: everything in the folder is compared, or told
    in a note. Where a step is neither of jaxmerge nor registered in this process
    (`jaxmerge.register_step`), digests are compared and nothing is computed: the result
    names the step and is not ``ok``. Of a learned merge the coefficients are taken as
    they were stored, the fit is not repeated.

    Args:
      folder: written by `jaxmerge.merge` or `jaxmerge.learn`.
      inputs: folders of the adapters, in their order, if they have moved.
      stats: folder of the statistics, if it has moved.
      base: folder of the base, if the merge ran it and it has moved.
      data: folder of the inputs of the base, if it has moved.
      tolerance: relative difference of a module that counts as rounding; by default
        1e-4, and more for half precision.
      progress: shows how far the job is.

    Returns:
      `Verified`.

    Raises:
      Refusal: a folder without a record that can be used, or something that the merge
        read is not there.
    """
    folder, record = Path(folder), read_record(folder)
    paths = input_paths(folder, record, inputs)
    given = {"statistics": stats, "base": base, "data": data}
    read = paths_read(folder, record, given)
    if tolerance is None:
        tolerance = _rounding(record["output"]["dtype"])
    found = [*_changed_inputs(record, paths), *_changed_reading(record, read)]
    missing = missing_steps(record)
    recomputed = not found and not missing
    found += _changed_outputs(record, folder)
    if not recomputed:
        found += unnamed_files(folder, record, None)
    else:
        with progress("computing again", 1) as advance:
            found += _differences_from_record(record, folder, paths, read)
            advance(1)
    return Verified(
        path=str(folder),
        record=record,
        differences=tuple(found),
        recomputed=recomputed,
        missing_steps=missing,
        tolerance=tolerance,
        read_by_fit=_read_by_fit(record),
        notes=tuple(notes(folder, record, paths)),
    )


def _changed_reading(
    record: Mapping[str, Any], read: Mapping[str, Path]
) -> Iterator[Difference]:
    entries = files_of(record)
    for role, path in read.items():
        says = f"of the {role} has changed"
        yield from _changed_files(path, entries[role]["sha256"], says)


def _changed_inputs(
    record: Mapping[str, Any], paths: Sequence[Path]
) -> Iterator[Difference]:
    for entry, path in zip(record["inputs"], paths, strict=True):
        yield from _changed_files(path, entry["sha256"], "the input has changed")


def _changed_outputs(record: Mapping[str, Any], folder: Path) -> Iterator[Difference]:
    says = "is not the file that was written"
    return _changed_files(folder, record["output"]["sha256"], says)


def _changed_files(
    folder: Path, digests: Mapping[str, str], says: str
) -> Iterator[Difference]:
    for name, digest in digests.items():
        path = folder if folder.is_file() else folder / name
        try:
            found = sha256(path) if path.is_file() else None
        except OSError as error:
            yield Difference(str(path), f"cannot be read ({error.strerror})")
            continue
        if found is None:
            yield Difference(str(path), "is missing")
        elif found != digest:
            yield Difference(str(path), f"{says} (SHA-256 differs from the record)")


def _differences_from_record(
    record: Mapping[str, Any],
    folder: Path,
    paths: Sequence[Path],
    read: Mapping[str, Path],
) -> list[Difference]:
    """Merges again as the record says and compares the two folders."""
    from jaxmerge import io

    adapters = adapters_again(record, paths)
    found = list(_unread(record, adapters, read))
    try:
        merged = computed_again(record, adapters, folder, read)
    except CannotBeUsed as error:
        return [*found, Difference(PHI_FILE, f"cannot be used: {error}")]
    settings = {name: record["output"][name] for name in SETTINGS}
    with tempfile.TemporaryDirectory(prefix="jaxmerge-verify-") as scratch:
        again = Path(scratch) / "again"
        saved = io.save_peft(
            *(again, merged.updates),
            like=adapters,
            biases=merged.biases,
            card=record["recipe"],
            extra_files=merged.beside,
            **settings,
        )
        written = {**record["output"]["sha256"], **saved.files}.keys()
        files = sorted(written - {RECORD_FILE, CARD_FILE})
        found += unnamed_files(folder, record, again)
        found += record_differences(record, adapters, again)
        found += differences(folder, again, files)
        found += card_differences(folder, record, again, saved.energy)
    return found


def _unread(
    record: Mapping[str, Any], adapters: "Adapters", read: Mapping[str, Path]
) -> Iterator[Difference]:
    """Files beside the adapters that are read and not in the record, or in it only."""
    from jaxmerge import io
    from jaxmerge.jobs.record_fields import STATISTICS

    entries = files_of(record)
    expected = {}
    if STATISTICS in read:
        statistics = io.open_statistics(read[STATISTICS]).of(adapters.names)
        expected[STATISTICS] = statistics.sha256
    if "base" in read:
        sample = record["recipe"].get("sample", {})
        task_type = sample.get("task_type", "classification")
        place = (read["base"], read["data"], adapters.names)
        groups = names_read(*place, task_type=task_type)
        for role, (_, names) in groups.items():
            known = entries[role]["sha256"]
            expected[role] = {name: known.get(name, "") for name in names}
    for role, files in expected.items():
        where = f"{RECORD_FILE}: recipe.files.{role}.sha256"
        yield from files_differences(where, entries[role]["sha256"], files)


def _read_by_fit(record: Mapping[str, Any]) -> dict[str, str]:
    """Whether what a fit read is still there; it does not decide the verification."""
    if kind(record) != "learned":
        return {}
    found = {}
    read_again = files_of(record)
    for role, entry in record["recipe"].get("files", {}).items():
        if role in read_again:
            continue
        differing = list(
            _changed_files(Path(entry["path"]), entry["sha256"], "changed")
        )
        missing = any(difference.says == "is missing" for difference in differing)
        found[role] = "missing" if missing else "changed" if differing else "unchanged"
    return found


def _rounding(dtype: str) -> float:
    import ml_dtypes

    from jaxmerge.io.prepare import checked_dtype

    return max(1e-4, 4 * float(ml_dtypes.finfo(checked_dtype(dtype)).eps))
