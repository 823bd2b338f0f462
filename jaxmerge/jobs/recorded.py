"""What a folder and its record say, against what was read and written again.

Nothing is believed because the record says it: a file that the record leaves out is a
difference, and what cannot be compared is told in a note.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxmerge.io.card import build_card
from jaxmerge.io.errors import show
from jaxmerge.io.files import read_object
from jaxmerge.io.formats import RECORD_FILE
from jaxmerge.io.opening import task_names
from jaxmerge.io.options import ReadOptions, recorded_options
from jaxmerge.io.replaceable import CARD_FILE, entries
from jaxmerge.jobs.compare import Difference
from jaxmerge.jobs.merge_record import kind, missing_steps, steps_named
from jaxmerge.jobs.record_fields import unknown_entries
from jaxmerge.spec import STEPS
from jaxmerge.tasks.record import HISTORY_FILE

if TYPE_CHECKING:
    from jaxmerge.io import Adapters

_ROUNDING = 2e-6  # of a share in the card, which has six digits
_SHARE = re.compile(r"\| (?P<name>.*) \| (?P<share>[01]\.\d{6}) \|")


def unnamed_files(
    folder: Path, record: Mapping[str, Any], again: Path | None
) -> Iterator[Difference]:
    """Everything in the folder that its record does not name.

    Args:
      folder: of the merge.
      record: its record.
      again: the same merge written again, if it was.
    """
    named = record["output"]["sha256"].keys() | {RECORD_FILE, CARD_FILE}
    written = set() if again is None else {*entries(again)}
    for name in sorted({*entries(folder)} | written):
        if name in named or (_is_hidden(name) and name not in written):
            continue
        if name in written or again is None:
            yield Difference(name, "has no SHA-256 in the record")
        else:
            yield Difference(name, "is not part of the merge, nor in its record")


def record_differences(
    record: Mapping[str, Any], adapters: "Adapters", again: Path
) -> Iterator[Difference]:
    """Where the record differs from what was read, and from what a merge records.

    Args:
      record: of the folder.
      adapters: as they were read.
      again: the same merge written again.
    """
    for index, (entry, source) in enumerate(
        zip(record["inputs"], adapters.sources, strict=True)
    ):
        where = f"{RECORD_FILE}: inputs[{index}]"
        for name in ("base_model", "revision", "weight_file"):
            yield from _field(f"{where}.{name}", entry[name], getattr(source, name))
        yield from files_differences(f"{where}.sha256", entry["sha256"], source.sha256)
    told = record["recipe"].get("own_steps", {})
    for name in sorted(steps_named(record) & STEPS.keys() - told.keys()):
        if STEPS[name].own is not None:
            where = f"{RECORD_FILE}: recipe.own_steps"
            yield Difference(where, f"does not name {name}, which is not of jaxmerge")
    found, expected = (r["output"]["kind"] for r in (record, _record_of(again)))
    yield from _field(f"{RECORD_FILE}: output.kind", found, expected)


def _field(where: str, found: Any, expected: Any) -> Iterator[Difference]:
    if found != expected:
        yield Difference(where, f"is {found!r}, expected {expected!r}")


def files_differences(
    where: str, found: Mapping[str, str], expected: Mapping[str, str]
) -> Iterator[Difference]:
    """Files that were read and are not in a record, or in it and were not read."""
    for name in sorted(found.keys() | expected.keys()):
        if name not in found:
            yield Difference(where, f"has no SHA-256 of {name}, which is read")
        elif name not in expected:
            yield Difference(where, f"names {name}, which is not read")
        elif found[name] != expected[name]:
            yield Difference(where, f"differs from that of {name} as it was read")


def card_differences(
    folder: Path, record: Mapping[str, Any], again: Path, energy: Mapping[str, float]
) -> Iterator[Difference]:
    """Lines of the card that are not what the merge written again says.

    Shares of the norm may differ by rounding.
    """
    path = folder / CARD_FILE
    if not path.is_file():
        return
    expected = build_card(
        {**_record_of(again), "versions": record["versions"]}, energy
    ).splitlines()
    try:
        found = path.read_text(encoding="utf-8").splitlines()
    except ValueError as error:
        yield Difference(CARD_FILE, f"cannot be read ({error})")
        return
    shares = {f"mean of {len(energy)}": sum(energy.values()) / max(len(energy), 1)}
    shares |= energy
    ours, theirs = (_without_shares(lines, shares) for lines in (found, expected))
    for number, (line, wanted) in enumerate(zip_longest(ours, theirs), start=1):
        if line != wanted and (line or wanted):
            shown, meant = (
                "absent" if x is None else repr(x[:60]) for x in (line, wanted)
            )
            says = f"is {shown}, expected {meant}"
            yield Difference(f"{CARD_FILE}: line {number}", says)
            return  # the lines below may only be shifted


def _without_shares(lines: Sequence[str], shares: Mapping[str, float]) -> list[str]:
    """Lines of a card, with "-" for a share that is right up to rounding."""
    escaped = {name.replace("\\", ""): share for name, share in shares.items()}
    kept = []
    for line in lines:
        row = _SHARE.fullmatch(line)
        name = row["name"].replace("\\", "") if row else ""
        right = (
            row is not None
            and name in escaped
            and abs(escaped[name] - float(row["share"])) <= _ROUNDING
        )
        kept.append("| share |" if right else line)
    return kept


def notes(
    folder: Path, record: Mapping[str, Any], paths: Sequence[Path]
) -> Iterator[str]:
    """What is in the folder or its record and is not compared with anything."""
    hidden = sorted(name for name in entries(folder) if _is_hidden(name))
    if hidden:
        shown = ", ".join(hidden[:4]) + (" .." if len(hidden) > 4 else "")
        yield f"not part of the merge and not compared: {shown}"
    if not (folder / CARD_FILE).is_file():
        yield f"there is no {CARD_FILE}"
    options = recorded_options(record["read_options"])
    default = asdict(ReadOptions())
    default["heads"] = record["output"]["heads"]  # what it does is in the files
    given = [k for k, value in options.items() if _set(value) != default[k]]
    if given:
        said = ", ".join(f"{name}={show(options[name])}" for name in given)
        yield f"the inputs are read as the record says: {said}"
    missing = sorted(default.keys() - options.keys())
    if missing:
        yield f"the record does not say, so it is the default: {', '.join(missing)}"
    names = zip(record["inputs"], task_names(paths), paths, strict=True)
    other = [f"{e['name']} is {path}" for e, name, path in names if e["name"] != name]
    if other:
        yield f"names that only the record gives: {', '.join(other)}"
    yield from _of_own_steps(record["recipe"])
    if missing_steps(record):
        yield "the card and the numbers of the merge are as the folder and record say"
    unknown = unknown_entries(record["recipe"], kind(record))
    if unknown:
        yield f"entries of the recipe that nothing reads: {', '.join(unknown)}"
    if kind(record) == "learned":
        yield (
            f"of the fit itself, {HISTORY_FILE} and how it was made are as the record "
            "says"
        )


def _of_own_steps(recipe: Mapping[str, Any]) -> Iterator[str]:
    for name, told in recipe.get("own_steps", {}).items():
        made_by = f"the step {name} is not of jaxmerge but "
        made_by += " and ".join(told["functions"])
        own = STEPS[name].own if name in STEPS else None
        if own is None or own == told:
            yield made_by
        else:
            same = own["functions"] == told["functions"]
            how = "with other source" if same else "in its place"
            yield f"{made_by}; {' and '.join(own['functions'])} is registered {how}"


def _record_of(again: Path) -> dict[str, Any]:
    return read_object(again / RECORD_FILE)


def _is_hidden(name: str) -> bool:
    """Whether an entry is of a tool, such as git, and read by no loader."""
    return name.startswith(".")


def _set(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
