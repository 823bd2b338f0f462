"""What ``jaxmerge tune`` prints of a search."""

from collections.abc import Iterator, Mapping
from functools import partial
from shlex import quote
from typing import TYPE_CHECKING, Any

from jaxmerge.cli.exits import as_flag
from jaxmerge.io.options import ReadOptions
from jaxmerge.refusals import Option
from jaxmerge.reports.saved import saved_lines
from jaxmerge.reports.tables import table

if TYPE_CHECKING:
    from jaxmerge.jobs.tuned import Tuned
    from jaxmerge.tuning.trace import Row

_SHOWN = 12  # merges


def search_lines(found: "Tuned", again: str) -> Iterator[Any]:
    """What a search has found, for people.

    Args:
      found: the search.
      again: the command that makes the best merge again.
    """
    for text in found.searched:
        yield f"searched  {text}"
    ended = "" if found.finished else ", as many as the budget allows"
    yield f"tried     {len(found.rows)} merges{ended}"
    best = sorted(found.rows, key=partial(_place, rising=found.maximise))[:_SHOWN]
    high = "higher" if found.maximise else "lower"
    columns = (f"{found.score} ({high} is better)>", "spread>", "merge")
    yield table(columns, [_cells(row) for row in best])
    if len(found.rows) > len(best):
        yield f"and {len(found.rows) - len(best)} more"
    yield f"repeat    {again}"
    if found.merged is not None:
        saved = found.merged.saved
        yield f"{saved.path}: the best merge, {len(saved.energy)} modules"
        yield from saved_lines(found.merged)
    yield from (f"note: {note}" for note in found.notes)
    yield from (f"wrote {path}" for path in (found.trace, found.plot) if path)


def _place(row: "Row", *, rising: bool) -> tuple[bool, float]:
    score = row.scored.score
    return score is None, (-1 if rising else 1) * (score or 0.0)


def _cells(row: "Row") -> tuple[str, ...]:
    scored, point = row.scored, row.point
    told = [point.pipeline, *([_weights(point.weights)] if point.weights else [])]
    told += [f"without {', '.join(point.left_out)}"] if point.left_out else []
    score = scored.error if scored.score is None else f"{scored.score:.4g}"
    spread = "" if scored.spread is None else f"{scored.spread:.2g}"
    return score, spread, " ".join(told)


def _weights(weights: tuple[float, ...]) -> str:
    return f"--weights {','.join(map(str, weights))}"


def repetition(found: "Tuned", options: Mapping[str, Any]) -> str:
    """The command that makes the best merge again.

    Args:
      found: the best merge.
      options: of the search.
    """
    parts = ["jaxmerge merge", *(quote(str(folder)) for folder in options["folders"])]
    parts += [f"--pipeline {quote(found.pipeline)}"]
    parts += [_weights(found.weights)] if found.weights else []
    parts += [f"--leave-out {quote(entry)}" for entry in found.leave_out]
    parts += [] if found.seed is None else [f"--seed {found.seed}"]
    parts += [as_flag(option) for option in _unlike_default(options)]
    return " ".join([*parts, "--out OUT"])


def _unlike_default(options: Mapping[str, Any]) -> list[Option]:
    """Options of a search that its merge needs too, as they would be given.

    >>> options = {"heads": "error", "lora_alpha": {"q": 8.0}, "points": 5}
    >>> [(option.name, option.value) for option in _unlike_default(options)]
    [('lora_alpha', ('q=8.0',))]
    """
    defaults = {**vars(ReadOptions()), "hub": False, "dense": "error"}
    defaults |= dict.fromkeys(("stats", "names", "dtype"))
    changed = {k: options[k] for k in defaults if k in options}
    return [
        Option(name, ",".join(value) if name == "names" else _as_text(value))
        for name, value in changed.items()
        if value != defaults[name]
    ]


def _as_text(value: Any) -> str | tuple[str, ...]:
    if isinstance(value, Mapping):
        return tuple(f"{name}={each}" for name, each in value.items())
    return tuple(value) if isinstance(value, tuple | list) else str(value)
