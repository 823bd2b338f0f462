"""``jaxmerge cluster``: which of many adapters belong together."""

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from jaxmerge.cli.console import Console
from jaxmerge.cli.flags import Folders, Json, Names, Quiet, split
from jaxmerge.cli.read_flags import with_read_options
from jaxmerge.jobs.clustering import Likeness
from jaxmerge.runtime import start_jax


@with_read_options
def cluster(
    *,
    folders: Folders,
    groups: Annotated[
        int, typer.Option("--groups", "-g", min=1, help="Number of groups.")
    ],
    read: dict[str, Any],
    by: Annotated[
        Likeness,
        typer.Option(
            help="What is compared: overlaps of directions, or cosines of updates."
        ),
    ] = "overlap",
    names: Names = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Sort adapters into groups of those that are alike, to be merged one by one.

    0 is the likeness of random directions, 1 that of the same ones.
    """
    start_jax()
    from jaxmerge import reports
    from jaxmerge.jobs import clustering

    console = Console(as_json=as_json, quiet=quiet)
    found = clustering.cluster(
        folders,
        groups=groups,
        by=by,
        names=split(names),
        progress=console.progress,
        **read,
    )

    def lines() -> Iterator[Any]:
        yield reports.table(
            ("adapters", "alike>", "nearest group", "alike>"),
            [
                (
                    " ".join(group.names),
                    _shown(group.within),
                    " ".join(group.nearest),
                    _shown(group.between),
                )
                for group in found.groups
            ],
        )
        yield from (f"note: {note}" for note in found.notes)

    console.result(found.to_json(), lines)


def _shown(value: float | None) -> str:
    """Three decimals, without a sign before zeros."""
    return "" if value is None else f"{round(value, 3) + 0.0:.3f}"
