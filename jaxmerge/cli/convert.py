"""``jaxmerge convert``: adapters from one format of folders to another."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxmerge.cli.console import Console
from jaxmerge.cli.flags import Folders, Force, Json, Out, Quiet
from jaxmerge.cli.read_flags import with_read_options
from jaxmerge.jobs.converting import Target
from jaxmerge.runtime import start_jax


@with_read_options
def convert(
    *,
    folders: Folders,
    out: Out,
    read: dict[str, Any],
    to: Annotated[
        Target | None,
        typer.Option(
            help="What is written. Checkpoints become a PEFT folder unless given, and "
            "everything else one orbax checkpoint."
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
    """Convert adapters to orbax, a JAX library or another kind of file, and back.

    Several PEFT folders become one orbax checkpoint, of which --task takes one out.
    --to nnx, qwix, tunix, maxtext-llama, maxtext-qwen, gemma or keras writes what that
    library reads; --to peft, diffusers or kohya one adapter as that kind, where the
    names of its modules are certain. No update is lost, but the scale is folded into B
    (alpha = r).
    """
    start_jax()
    from jaxmerge.jobs import converting

    found = converting.convert(
        folders,
        out=out,
        to=to,
        like=like,
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
