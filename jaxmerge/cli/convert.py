"""``jaxmerge convert``: adapters <-> orbax checkpoints, and one kind to another."""

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from jaxmerge.cli.console import Console
from jaxmerge.cli.flags import Folders, Force, Json, Out, Quiet, with_read_options
from jaxmerge.jobs.converting import Target
from jaxmerge.runtime import start_jax


@with_read_options
def convert(
    *,
    folders: Folders,
    out: Out,
    read: dict[str, Any],
    to: Annotated[
        Target,
        typer.Option(
            help="What is written: a checkpoint of all adapters, or one adapter as a "
            "PEFT folder or as a file of diffusers or of kohya's sd-scripts."
        ),
    ] = "orbax",
    task: Annotated[
        str | None,
        typer.Option(help="Name of the adapter to take from a checkpoint of several."),
    ] = None,
    component: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Component of a pipeline, such as unet or text_encoder: which to take "
            "for a PEFT folder, or which a PEFT folder is.",
        ),
    ] = None,
    ragged: Annotated[
        bool,
        typer.Option(
            "--ragged",
            help="Give each module its own rank (not in files of diffusers).",
        ),
    ] = False,
    force: Force = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Convert adapters to orbax and back, or one kind of file to another.

    Several adapters become one checkpoint, and --task takes one out of it. With --to
    peft, diffusers or kohya, one adapter is written as that kind, where the names of
    its modules are certain. Nothing is lost either way, but the scale is folded into B
    (alpha = r).
    """
    start_jax()
    from jaxmerge.jobs import converting

    found = converting.convert(
        folders,
        out=out,
        to=to,
        task=task,
        component=component,
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
