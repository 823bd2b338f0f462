"""``jaxmerge inspect``: what adapters are and have in common, before any merge."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxmerge.cli.console import Console
from jaxmerge.cli.flags import (
    DATA_FILES,
    Json,
    LogitScale,
    MaxLength,
    ModelType,
    Names,
    Quiet,
    TextHeads,
    split,
)
from jaxmerge.cli.read_flags import with_read_options
from jaxmerge.runtime import start_jax


@with_read_options
def inspect(
    *,
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="ADAPTER...",
            help="PEFT folders, or one orbax checkpoint of jaxmerge.",
        ),
    ],
    read: dict[str, Any],
    modules: Annotated[
        bool, typer.Option("--modules", help="Print one line for each module.")
    ] = False,
    plots: Annotated[
        Path | None, typer.Option("--plots", help="Folder for plots, as PNG.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="One page with tables and plots.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the page and the plots.")
    ] = False,
    base: Annotated[
        Path | None,
        typer.Option(
            help="Hugging Face folder of the base model. With --data, derivatives "
            "through it are shown too."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="With --base: folder with the inputs of each adapter, labels ignored: "
            + DATA_FILES
        ),
    ] = None,
    names: Names = None,
    text_heads: TextHeads = None,
    task_type: ModelType = None,
    batch: Annotated[
        int, typer.Option(min=1, help="With --base: inputs of each task at a time.")
    ] = 16,
    batches: Annotated[
        int, typer.Option(min=1, help="With --base: how many batches are taken.")
    ] = 8,
    logit_scale: LogitScale = None,
    max_length: MaxLength = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Show norms and spectra, and what several adapters have in common.

    With --base and --data also how the losses react to every direction of the adapters,
    on the batches with which `jaxmerge learn --pipeline tara_a` begins.
    """
    start_jax()
    from jaxmerge import reports
    from jaxmerge.jobs import inspecting

    console = Console(as_json=as_json, quiet=quiet)
    found = inspecting.inspect(
        paths,
        plots=plots,
        html=html,
        base=base,
        data=data,
        names=split(names),
        text_heads=text_heads,
        task_type=task_type,
        batch=batch,
        batches=batches,
        logit_scale=logit_scale,
        max_length=max_length,
        force=force,
        progress=console.progress,
        **read,
    )

    def lines() -> Iterator[Any]:
        yield from reports.inspection(found.inspection, each=modules)
        yield from (f"wrote {path}" for path in found.plots)
        yield from (f"wrote {path}" for path in [found.html] if path)

    console.result(found.to_json(), lines)
