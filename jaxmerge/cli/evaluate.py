"""``jaxmerge evaluate``: a merge on every task, beside the base and own adapters."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxmerge.cli.console import Console
from jaxmerge.cli.flags import (
    DATA_FILES,
    BaseFolder,
    Json,
    MaxLength,
    ModelType,
    Names,
    Quiet,
    TextHeads,
    split,
)
from jaxmerge.cli.read_flags import with_read_options
from jaxmerge.runtime import start_jax


@partial(with_read_options, fixed={"heads": "keep", "allow_zero": True})
def evaluate(
    *,
    merged: Annotated[Path, typer.Argument(help="Folder of a merged PEFT adapter.")],
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="ADAPTER...",
            help="Adapters of the merge; those of its record unless given.",
        ),
    ] = None,
    base: BaseFolder,
    data: Annotated[
        Path,
        typer.Option(
            help="Folder with the inputs of each task and their classes, numbers from "
            f"0 (field label, for CLIP array labels): {DATA_FILES}"
        ),
    ],
    names: Names = None,
    text_heads: TextHeads = None,
    task_type: ModelType = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of rows of each file that are read, at even distances; all "
            "unless given.",
        ),
    ] = None,
    batch: Annotated[
        int, typer.Option(min=1, help="Number of inputs in the model at a time.")
    ] = 64,
    max_length: MaxLength = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="File for a plot, as PNG.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the plot.")] = False,
    read: dict[str, Any],
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure a merge on labeled data of every task.

    Shows the accuracy of the base, of the own adapter and of the merge, and the latter
    two as a ratio, with 95 % intervals of the paired bootstrap.
    """
    start_jax()
    from jaxmerge.jobs import evaluating
    from jaxmerge.reports.scores import evaluation

    console = Console(as_json=as_json, quiet=quiet)
    found = evaluating.evaluate(
        merged,
        folders or None,
        base=base,
        data=data,
        names=split(names),
        text_heads=text_heads,
        task_type=task_type,
        limit=limit,
        batch=batch,
        max_length=max_length,
        plot=plot,
        force=force,
        progress=console.progress,
        **read,
    )

    def lines() -> Iterator[Any]:
        yield from evaluation(found.evaluation)
        yield from (f"note: {note}" for note in found.notes)
        yield from (f"wrote {path}" for path in [found.plot] if path)

    console.result(found.to_json(), lines)
