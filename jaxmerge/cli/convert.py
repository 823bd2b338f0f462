"""``jaxmerge convert``: PEFT folders <-> orbax checkpoints."""

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from jaxmerge.cli.console import Console
from jaxmerge.cli.flags import Folders, Force, Json, Out, Quiet, with_read_options
from jaxmerge.io.formats import FormatName
from jaxmerge.runtime import start_jax


@with_read_options
def convert(
    *,
    folders: Folders,
    out: Out,
    read: dict[str, Any],
    to: Annotated[
        FormatName, typer.Option(help="Format of the checkpoint that is written.")
    ] = "orbax",
    task: Annotated[
        str | None,
        typer.Option(help="Name of the adapter to take from a checkpoint of several."),
    ] = None,
    ragged: Annotated[
        bool,
        typer.Option("--ragged", help="Give each module its own rank (PEFT only)."),
    ] = False,
    force: Force = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Convert PEFT folders to orbax, and back.

    The direction follows from the input. Several folders become one checkpoint, and
    --task takes one out of it. Nothing is lost either way, but a PEFT folder
    comes back with its scale folded into B (alpha = r).
    """
    start_jax()
    from jaxmerge.jobs import converting

    found = converting.convert(
        folders, out=out, to=to, task=task, ragged=ragged, force=force, **read
    )

    def lines() -> Iterator[str]:
        yield (
            f"{found.path}: {len(found.adapters)} adapters, {found.modules} modules, "
            f"as {found.format} ({found.dtype})"
        )
        if found.zero_modules:
            yield f"  {found.zero_modules} modules whose update is zero are left out"
        yield from (f"  note: {note}" for note in found.notes)

    Console(as_json=as_json, quiet=quiet).result(found.to_json(), lines)
