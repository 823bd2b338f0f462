"""``jaxmerge compress`` and ``restore``: adapters in terms of what they share."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxmerge.cli.console import Console
from jaxmerge.cli.flags import (
    Folders,
    Force,
    Json,
    Names,
    Out,
    Quiet,
    split,
)
from jaxmerge.cli.read_flags import with_read_options
from jaxmerge.runtime import start_jax


@with_read_options
def compress(
    *,
    folders: Folders,
    out: Out,
    read: dict[str, Any],
    components: Annotated[
        int | None,
        typer.Option(
            "--components",
            "-p",
            min=1,
            help="Number of components that are kept; one for each adapter, which "
            "loses nothing, unless given.",
        ),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Width of the bases that the adapters share; all directions, which "
            "loses nothing, unless given.",
        ),
    ] = None,
    names: Names = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="PNG file for the errors against what is stored."),
    ] = None,
    force: Force = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compress adapters into one folder, from which each can be restored.

    Prints what every number of components stores and loses. To save much, lower --rank
    before --components: what `jaxmerge restore` gives is then nearly the same.
    """
    start_jax()
    from jaxmerge import reports
    from jaxmerge.jobs import compressing

    console = Console(as_json=as_json, quiet=quiet)
    found = compressing.compress(
        folders,
        out=out,
        components=components,
        rank=rank,
        names=split(names),
        plot=plot,
        force=force,
        progress=console.progress,
        **read,
    )

    def lines() -> Iterator[Any]:
        chosen = found.chosen
        lost = "nothing is lost" if found.exact else f"error {chosen.error:.3f}"
        yield (
            f"{found.path}: {len(found.adapters)} adapters, {found.modules} modules, "
            f"{chosen.components} components; {lost}"
        )
        yield ""
        yield reports.table(
            ("components>", "numbers>", "of adapters>", "error>", "worst>"),
            [
                (
                    row.components,
                    f"{row.numbers:,}",
                    f"{row.share:.2f}",
                    f"{row.error:.3f}",
                    f"{row.worst:.3f}",
                )
                for row in found.curve
            ],
        )
        yield (
            f"a core for each adapter in the same bases: {found.core_numbers:,}; the "
            f"adapters as they are: {found.adapter_numbers:,}"
        )
        yield from (f"note: {note}" for note in found.notes)
        yield from (f"wrote {path}" for path in [found.plot] if path)

    console.result(found.to_json(), lines)


def restore(
    *,
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder of `jaxmerge compress`.")
    ],
    adapter: Annotated[str, typer.Option("--adapter", help="Name of the adapter.")],
    out: Out,
    rank: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Rank to truncate to; unless given that which the adapter had, or all "
            "directions where something was lost.",
        ),
    ] = None,
    ragged: Annotated[
        bool, typer.Option("--ragged", help="Give each module its own rank.")
    ] = False,
    force: Force = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Restore one of the adapters that were compressed, as a PEFT folder."""
    start_jax()
    from jaxmerge.jobs import compressing

    found = compressing.restore(
        folder, adapter=adapter, out=out, rank=rank, ragged=ragged, force=force
    )

    def lines() -> Iterator[str]:
        kept = "as it was" if found.exact else "nearly as it was"
        adapter = f"{found.adapter}, {kept}, rank {found.rank}"
        yield f"{found.path}: {adapter} ({found.dtype})"
        if found.energy < 1:
            yield f"  the rank leaves {found.energy:.4f} of a squared norm or more"

    Console(as_json=as_json, quiet=quiet).result(found.to_json(), lines)
