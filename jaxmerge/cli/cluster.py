"""``jaxmerge cluster``: which of many adapters belong together."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxmerge.cli import flags
from jaxmerge.cli.command import Options, command
from jaxmerge.cli.console import Console
from jaxmerge.cli.read_flags import Reading
from jaxmerge.jobs.clustering import Likeness
from jaxmerge.reports.tables import table

if TYPE_CHECKING:
    from jaxmerge.jobs.clustering import Clustered


@command(reads=Reading())
def cluster(
    console: Console,
    options: Options,
    *,
    folders: flags.Folders,
    groups: Annotated[int, typer.Option("--groups", "-g", min=1)],
    by: Likeness = "overlap",
    names: flags.Names = None,
) -> None:
    """Sort adapters into groups of those that are alike, to be merged one by one.

    0 is the likeness of random directions, 1 that of the same ones.

    Args:
      groups: Number of groups.
      by: What is compared: overlaps of directions, or cosines of updates.
    """
    from jaxmerge.jobs import clustering

    found = clustering.cluster(**options, progress=console.progress)
    console.show(found, _lines)


def _lines(found: "Clustered") -> Iterator[Any]:
    columns = ("adapters", "alike>", "nearest group", "alike>")
    rows = [
        (" ".join(g.names), _shown(g.within), " ".join(g.nearest), _shown(g.between))
        for g in found.groups
    ]
    yield table(columns, rows)
    yield from (f"note: {note}" for note in found.notes)


def _shown(value: float | None) -> str:
    """Three decimals, without a sign before zeros."""
    return "" if value is None else f"{round(value, 3) + 0.0:.3f}"
