"""``jaxmerge collect``: statistics of the inputs of layers, for merges with them."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxmerge.cli.console import Console
from jaxmerge.cli.flags import (
    BaseFolder,
    BatchSize,
    DataFolder,
    Distributed,
    Json,
    Limit,
    MaxLength,
    ModelType,
    Names,
    Quiet,
    split,
)
from jaxmerge.cli.read_flags import with_read_options
from jaxmerge.reports.tables import size, span
from jaxmerge.runtime import start_jax

if TYPE_CHECKING:
    from jaxmerge.jobs.collecting import Collected


@partial(with_read_options, fixed={"heads": "keep"})
def collect(
    *,
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="ADAPTER...", help="PEFT adapter folders."),
    ] = None,
    base: BaseFolder,
    data: DataFolder,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of statistics to create.")
    ],
    names: Names = None,
    modules: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Without adapters: layers by the ends of their names, as PEFT's "
            "target_modules; --names gives the tasks.",
        ),
    ] = None,
    adapted: Annotated[
        bool | None,
        typer.Option(
            "--adapted/--pretrained",
            help="Inputs in the model with the task's own adapter, as RegMean and SSR "
            "take them, or in the base as it is, as OSRM does; adapted unless there "
            "are no adapters.",
            show_default=False,
        ),
    ] = None,
    limit: Limit = None,
    batch: BatchSize = 16,
    max_length: MaxLength = None,
    task_type: ModelType = None,
    sketch: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="ROWS",
            help="Keep so many rows of each layer and task instead of n x n.",
        ),
    ] = None,
    read: dict[str, Any],
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Replace the folder if it holds statistics alone."
        ),
    ] = False,
    distributed: Distributed = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure the inputs of the layers that adapters change, on unlabeled data.

    Writes one file for each task into a folder for `jaxmerge merge --stats`. The folder
    appears complete or not at all.
    """
    start_jax(distributed=distributed)
    from jaxmerge.jobs import collecting

    console = Console(as_json=as_json, quiet=quiet)
    found = collecting.collect(
        folders or (),
        base=base,
        data=data,
        out=out,
        names=split(names),
        modules=split(modules),
        adapted=adapted,
        limit=limit,
        batch=batch,
        max_length=max_length,
        task_type=task_type,
        sketch=sketch,
        force=force,
        progress=console.progress,
        **read,
    )
    console.result(found.to_json(), lambda: _lines(found))


def _lines(found: "Collected") -> Iterator[str]:
    written = found.written
    record, measured = written.record, written.measured
    yield (
        f"{written.path}: inputs of {len(record['modules'])} modules, "
        f"{len(record['tasks'])} tasks"
    )
    for task, seen in record["tasks"].items():
        yield f"  {task}: {measured['inputs'][task]} inputs, {seen['tokens']} tokens"
    with_adapter = measured["inputs_of"] == "adapted"
    yield f"  measured  {'with each own adapter' if with_adapter else 'in the base'}"
    kept = f"{found.sketch} rows" if found.sketch else "n x n"
    yield f"  features  {span(written.widths().values())}, {kept} of each module"
    yield f"  size      {size(found.size)}, done in {found.seconds:.1f} s"
    yield from (f"  note: {note}" for note in found.notes)
