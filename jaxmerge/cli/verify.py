"""``jaxmerge verify``: computes a merged folder again from its own record."""

import dataclasses
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxmerge.cli.console import Console
from jaxmerge.cli.errors import VerificationFailed, refusing_bad_input
from jaxmerge.cli.options import Json, Quiet
from jaxmerge.cli.runtime import start_jax
from jaxmerge.jobs.merge_record import (
    SETTINGS,
    files_of,
    input_paths,
    kind,
    paths_read,
    read_record,
)

if TYPE_CHECKING:
    from jaxmerge.io import Adapters
    from jaxmerge.jobs.compare import Difference
    from jaxmerge.types import Update

_SHOWN = 20  # differences


def verify(
    *,
    folder: Annotated[
        Path, typer.Argument(help="Folder written by jaxmerge merge or learn.")
    ],
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(help="Where the inputs are now, in their order, if they moved."),
    ] = None,
    stats: Annotated[
        Path | None, typer.Option(help="Where the statistics are now, if they moved.")
    ] = None,
    base: Annotated[
        Path | None, typer.Option(help="Where the base is now, if the merge ran it.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Where its inputs are now, if they moved.")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Relative difference of a module that counts as rounding; by default "
            "1e-4, and more for half precision.",
        ),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compute a merged folder again and compare.

    Inputs, statistics and outputs are also checked against the SHA-256 in its record.
    Of a learned merge the coefficients are taken from phi.safetensors, the fit is not
    repeated. Exit code 1 if anything differs by more than rounding.
    """
    console = Console(as_json=as_json, quiet=quiet)
    record = read_record(folder)
    paths = input_paths(folder, record, inputs)
    given = {"statistics": stats, "base": base, "data": data}
    read = paths_read(folder, record, given)
    if tolerance is None:
        tolerance = _rounding(record["output"]["dtype"])
    found = list(_changed_inputs(record, paths))
    found += _changed_reading(record, read)
    changed = bool(found)
    found += _changed_outputs(record, folder)
    if not changed:
        start_jax()
        with console.progress("computing again", 1) as advance:
            found += _differences_from_record(record, folder, paths, read)
            advance(1)
    serious = [d for d in found if d.size is None or not d.size <= tolerance]
    largest = max((d.size for d in found if d.size is not None), default=0.0)
    document = {
        "path": str(folder),
        "ok": not serious,
        "identical": not found,
        "recomputed": not changed,
        "largest_difference": largest,
        "tolerance": tolerance,
        "differences": [d._asdict() for d in found],
        "recipe": record["recipe"],
        "read_by_fit": _read_by_fit(record),
        "versions": {"then": record["versions"], "now": _versions(record)},
    }
    console.result(
        document, lambda: _lines(document, serious, inputs=len(record["inputs"]))
    )
    if serious:
        raise VerificationFailed(
            f"{folder}: not verified, {len(serious)} differences from its record"
        )


def _changed_reading(
    record: Mapping[str, Any], read: Mapping[str, Path]
) -> "Iterable[Difference]":
    entries = files_of(record)
    for role, path in read.items():
        says = f"of the {role} has changed"
        yield from _changed_files(path, entries[role]["sha256"], says)


def _changed_inputs(
    record: Mapping[str, Any], paths: list[Path]
) -> "Iterable[Difference]":
    for entry, path in zip(record["inputs"], paths, strict=True):
        yield from _changed_files(path, entry["sha256"], "the input has changed")


def _changed_outputs(record: Mapping[str, Any], folder: Path) -> "Iterable[Difference]":
    says = "is not the file that was written"
    return _changed_files(folder, record["output"]["sha256"], says)


def _changed_files(
    folder: Path, digests: Mapping[str, str], says: str
) -> "Iterable[Difference]":
    from jaxmerge.io.files import sha256
    from jaxmerge.jobs.compare import Difference

    for name, digest in digests.items():
        path = folder / name
        if not path.is_file():
            yield Difference(str(path), "is missing")
        elif sha256(path) != digest:
            yield Difference(str(path), f"{says} (SHA-256 differs from the record)")


def _differences_from_record(
    record: Mapping[str, Any],
    folder: Path,
    paths: list[Path],
    read: Mapping[str, Path],
) -> "list[Difference]":
    """Merges again as the record says and compares the two folders."""
    from jaxmerge import io
    from jaxmerge.jobs.compare import Difference, differences
    from jaxmerge.jobs.merge_recipe import Recipe

    adapters = io.load_peft(paths, **record["read_options"])
    names = tuple(entry["name"] for entry in record["inputs"])
    adapters = dataclasses.replace(adapters, names=names)
    written = dict(record["output"]["sha256"])
    if kind(record) == "pipeline":
        with refusing_bad_input():
            recipe = Recipe.from_record(record["recipe"], adapters, read)
        updates, biases = recipe.run(adapters)
    else:
        from jaxmerge.tasks.record import HISTORY_FILE, PHI_FILE

        try:
            updates, biases = _apply_phi(record, adapters, folder / PHI_FILE), None
        except (ValueError, TypeError) as error:  # AdapterError is a ValueError
            return [Difference(PHI_FILE, f"cannot be used: {error}")]
        for given in (PHI_FILE, HISTORY_FILE):
            written.pop(given, None)
    settings = {name: record["output"][name] for name in SETTINGS}
    with tempfile.TemporaryDirectory(prefix="jaxmerge-verify-") as scratch:
        again = Path(scratch) / "again"
        io.save_peft(again, updates, like=adapters, biases=biases, **settings)
        return differences(folder, again, written)


def _apply_phi(
    record: Mapping[str, Any], adapters: "Adapters", path: Path
) -> "dict[str, Update]":
    """Merges with learned coefficients as they were stored."""
    from jaxmerge.io.files import checked_file
    from jaxmerge.io.tensors import SafetensorsFile, read_finite
    from jaxmerge.jobs.learned_recipe import Recipe

    file = SafetensorsFile(checked_file(path))
    phis = {name: read_finite(file, name) for name in file.infos}
    return Recipe.from_record(record["recipe"]).apply(adapters, phis)


def _read_by_fit(record: Mapping[str, Any]) -> dict[str, str]:
    """Whether what a fit read is still there; it does not decide the verification."""
    if kind(record) != "learned":
        return {}
    found = {}
    for role, entry in record["recipe"].get("files", {}).items():
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


def _versions(record: Mapping[str, Any]) -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in record["versions"]}


def _lines(document: Mapping[str, Any], serious: list, *, inputs: int):
    path = document["path"]
    if document["identical"]:
        yield f"{path}: verified, computed again from {inputs} inputs bit by bit"
    elif document["ok"]:
        yield (
            f"{path}: verified up to rounding, relative difference at most "
            f"{document['largest_difference']:.3g}"
        )
    else:
        yield f"{path}: NOT verified"
    for difference in serious[:_SHOWN]:
        size = f" by {difference.size:.3g}" if difference.size is not None else ""
        yield f"  {difference.where} {difference.says}{size}"
    if len(serious) > _SHOWN:
        yield f"  and {len(serious) - _SHOWN} more (--json shows all)"
    if not document["recomputed"]:
        yield "  not computed again, because the inputs are not those of the record"
    if document["read_by_fit"]:
        states = ", ".join(f"{k} {v}" for k, v in document["read_by_fit"].items())
        yield f"  with the stored coefficients, the fit is not repeated ({states})"
    then, now = document["versions"]["then"], document["versions"]["now"]
    if then != now and not document["identical"]:
        yield f"  made with {_listed(then)}; this is {_listed(now)}"


def _listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())
