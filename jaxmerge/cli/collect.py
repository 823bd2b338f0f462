"""``jaxmerge collect``: statistics of the inputs of layers, for merges with them."""

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from jaxmerge.cli.console import Console
from jaxmerge.cli.errors import CommandError, refusing_bad_input
from jaxmerge.cli.options import (
    BaseFolder,
    BatchSize,
    DataFolder,
    Heads,
    Json,
    Limit,
    MaxLength,
    Names,
    Quiet,
    different_names,
    task_names,
    with_read_options,
)
from jaxmerge.cli.runtime import start_jax
from jaxmerge.reports.tables import size, span

if TYPE_CHECKING:
    from jaxmerge.io import Adapters, StatisticsFolder
    from jaxmerge.tasks import Base, Unlabeled


class ToMeasure(NamedTuple):
    """What is to be measured, read and checked against each other.

    Attributes:
      adapters: None where the layers were named instead.
      files: digests of base and data.
      base: the model.
      unlabeled: inputs of every task.
      modules: names of the layers.
    """

    adapters: "Adapters | None"
    files: dict[str, Any]
    base: "Base"
    unlabeled: "Unlabeled"
    modules: list[str]


@partial(with_read_options, fixed={"heads": Heads.keep})
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
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure the inputs of the layers that adapters change, on unlabeled data.

    Writes one file for each task into a folder for `jaxmerge merge --stats`. The folder
    appears complete or not at all.
    """
    from jaxmerge.io.replaceable import STATISTICS
    from jaxmerge.io.staging import check_target

    inputs = [*(folders or ()), base, data]
    check_target(out, force=force, inputs=inputs, kind=STATISTICS)
    adapted = bool(folders) if adapted is None else adapted
    _check_what(folders, modules, names, adapted=adapted)
    console = Console(as_json=as_json, quiet=quiet)
    start_jax()
    from jaxmerge.io import save_statistics
    from jaxmerge.tasks import measure

    clock = time.perf_counter()
    with console.progress("reading", 3) as advance, refusing_bad_input():
        found = _read(
            *(folders, read, base, data),
            names=names,
            modules=modules,
            limits={"max_length": max_length, "limit": limit},
            advance=advance,
        )
    unlabeled = found.unlabeled
    total = sum(unlabeled.count(task) for task in unlabeled.inputs)
    with (
        console.progress("measuring inputs", total) as advance,
        refusing_bad_input(),
    ):
        tasks = measure(
            *(found.base, unlabeled, found.modules),
            adapters=found.adapters if adapted else None,
            batch=batch,
            sketch=sketch,
            report=lambda task, count: advance(count, title=task),
        )
        written = save_statistics(
            out,
            tasks,
            measured=_record(found, adapted=adapted),
            force=force,
            inputs=inputs,
        )
    files = [out / name for name in written.sha256]
    document = {
        "path": str(out),
        **written.record,
        "sketch": sketch,
        "seconds": round(time.perf_counter() - clock, 3),
        "bytes": sum(path.stat().st_size for path in files),
        "notes": [*unlabeled.notes, *_notes(written, sketch)],
    }
    console.result(document, lambda: _lines(written, document))


def _check_what(
    folders: list[Path] | None, modules: str | None, names: str | None, *, adapted: bool
) -> None:
    """Adapters say what is measured; without them the options have to."""
    if folders and modules is not None:
        raise CommandError("--modules is for no adapters: they name their own modules")
    if folders:
        return
    if modules is None or names is None:
        raise CommandError(
            "give adapters, or for the base alone --modules q_proj,v_proj --names "
            "cars,dtd: layers and tasks"
        )
    if adapted:
        raise CommandError("--adapted needs adapters; leave it out for the base alone")


def _read(
    folders: list[Path] | None,
    read: dict[str, Any],
    base: Path,
    data: Path,
    *,
    names: str | None,
    modules: str | None,
    limits: dict[str, int | None],
    advance: Any,
) -> ToMeasure:
    from jaxmerge import io
    from jaxmerge.tasks import load_base, load_unlabeled, modules_ending
    from jaxmerge.tasks.bases import check_layers
    from jaxmerge.tasks.record import files_read

    adapters = io.load_peft(folders, **read) if folders else None
    if adapters is None:
        tasks = different_names(names, "--names")
    else:
        tasks = task_names(names, adapters.names)
        adapters = replace(adapters, names=tasks)
    advance(1)
    files = files_read(base, data, tasks)
    model = load_base(base)
    advance(1)
    unlabeled = load_unlabeled(data, tasks, model, **limits)
    advance(1)
    if adapters is None:
        layers = modules_ending(model, unlabeled, modules.split(","))
    else:
        check_layers(model, adapters, unlabeled.inputs[tasks[0]])
        layers = list(adapters.stacks)
    return ToMeasure(adapters, files, model, unlabeled, layers)


def _record(found: ToMeasure, *, adapted: bool) -> dict[str, Any]:
    """What was measured, for the record; `merge` compares adapters with it."""
    adapters, unlabeled = found.adapters, found.unlabeled
    bases = [] if adapters is None else [s.base_model for s in adapters.sources]
    record = {
        "inputs_of": "adapted" if adapted else "pretrained",
        "base_model": next((name for name in bases if name is not None), None),
        "inputs": {task: unlabeled.count(task) for task in unlabeled.inputs},
        "max_length": unlabeled.max_length,
        "files": found.files,
    }
    if adapted:
        record["adapters"] = {
            name: {
                "path": source.path,
                "sha256": dict(source.sha256),
                "scales": dict(source.scales),
            }
            for name, source in zip(adapters.names, adapters.sources, strict=True)
        }
    return record


def _notes(written: "StatisticsFolder", sketch: int | None) -> Iterator[str]:
    """Where there are fewer tokens than directions."""
    widest = max(written.widths().values())
    for task, found in written.record["tasks"].items():
        if found["tokens"] < widest and sketch is None:
            yield (
                f"{task} has {found['tokens']} tokens for up to {widest} input "
                "features; what no token excites is merged as by the mean, more inputs "
                "or a ridge make the rest steadier"
            )


def _lines(written: "StatisticsFolder", document: dict[str, Any]) -> Iterator[str]:
    record, measured = written.record, written.measured
    yield (
        f"{written.path}: inputs of {len(record['modules'])} modules, "
        f"{len(record['tasks'])} tasks"
    )
    for task, found in record["tasks"].items():
        inputs = measured["inputs"][task]
        yield f"  {task}: {inputs} inputs, {found['tokens']} tokens"
    with_adapter = measured["inputs_of"] == "adapted"
    yield f"  measured  {'with each own adapter' if with_adapter else 'in the base'}"
    rows = document["sketch"]
    kept = f"{rows} rows" if rows else "n x n"
    yield f"  features  {span(written.widths().values())}, {kept} of each module"
    yield f"  size      {size(document['bytes'])}, done in {document['seconds']:.1f} s"
    yield from (f"  note: {note}" for note in document["notes"])
