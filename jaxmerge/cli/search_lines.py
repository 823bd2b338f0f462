"""What ``jaxmerge tune`` prints of a search."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from jaxmerge.cli.exits import as_flag
from jaxmerge.cli.merge import written_lines
from jaxmerge.cli.values import unlike_default

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
    from jaxmerge.reports.tables import table

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
        saved = found.merged
        yield f"{saved.saved.path}: the best merge, {len(saved.saved.energy)} modules"
        yield from written_lines(saved.saved, saved.size, saved.seconds, saved.notes)
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


def repetition(
    found: "Tuned", folders: Sequence[Path], options: Mapping[str, Any]
) -> str:
    """The command that makes the best merge again.

    Args:
      found: the best merge.
      folders: the adapters.
      options: others of merge, as they were given here.
    """
    parts = ["jaxmerge merge", *(quote(str(folder)) for folder in folders)]
    parts += [f"--pipeline {quote(found.pipeline)}"]
    parts += [_weights(found.weights)] if found.weights else []
    parts += [f"--leave-out {quote(entry)}" for entry in found.leave_out]
    parts += [] if found.seed is None else [f"--seed {found.seed}"]
    parts += [as_flag(option) for option in unlike_default(options)]
    return " ".join([*parts, "--out OUT"])
