"""``jaxmerge convert``: adapters from one format of folders to another."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from jaxmerge.cli.console import Console
from jaxmerge.cli.flags import Folders, Force, Json, Out, Quiet, with_read_options
from jaxmerge.runtime import start_jax

Target = Literal["peft", "orbax", "nnx", "qwix", "tunix", "gemma"]


@with_read_options
def convert(
    *,
    folders: Folders,
    out: Out,
    read: dict[str, Any],
    to: Annotated[
        Target | None,
        typer.Option(
            help="Format that is written. PEFT folders become orbax unless given, and "
            "everything else PEFT."
        ),
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoint of the JAX model that is to load the result; unless given "
            "one of those that were merged."
        ),
    ] = None,
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
    """Convert adapters to orbax or to a JAX library, and back to PEFT.

    Several PEFT folders become one orbax checkpoint, of which --task takes one out.
    --to nnx, qwix, tunix or gemma writes a checkpoint of that library. Nothing is lost,
    but a PEFT folder comes back with its scale folded into B (alpha = r).
    """
    start_jax()
    from jaxmerge.jobs import converting

    found = converting.convert(
        folders,
        out=out,
        to=to,
        like=like,
        task=task,
        ragged=ragged,
        force=force,
        **read,
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
