"""``jaxmerge collect``: statistics of the inputs of layers, for merges with them."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from jaxmerge.cli import flags
from jaxmerge.cli.command import Options, command
from jaxmerge.cli.console import Console
from jaxmerge.cli.read_flags import Reading
from jaxmerge.reports.tables import size, span

if TYPE_CHECKING:
    from jaxmerge.jobs.collecting import Collected


@command(reads=Reading(without=("heads",)))
def collect(
    console: Console,
    options: Options,
    *,
    folders: flags.FoldersOrNone = None,
    base: flags.BaseFolder,
    data: flags.DataFolder,
    out: flags.Out,
    names: flags.Names = None,
    modules: flags.NamesOf = None,
    adapted: Annotated[
        bool | None, typer.Option("--adapted/--pretrained", show_default=False)
    ] = None,
    limit: flags.Limit = None,
    batch: flags.BatchSize = 16,
    max_length: flags.MaxLength = None,
    task_type: flags.ModelType = None,
    sketch: Annotated[int | None, typer.Option(min=1, metavar="ROWS")] = None,
    force: flags.Force = False,
    distributed: flags.Distributed = False,
) -> None:
    """Measure the inputs of the layers that adapters change, on unlabeled data.

    Writes one file for each task into a folder for `jaxmerge merge --stats`. The folder
    appears complete or not at all.

    Args:
      folders: PEFT adapter folders.
      out: Folder of statistics to create.
      modules: Without adapters: layers by the ends of their names, as PEFT's
        target_modules; --names gives the tasks.
      adapted: Inputs in the model with the task's own adapter, as RegMean and SSR take
        them, or in the base as it is, as OSRM does; adapted unless there are no
        adapters.
      sketch: Keep so many rows of each layer and task instead of n x n.
      force: Replace the folder if it holds statistics alone.
    """
    from jaxmerge.jobs import collecting

    found = collecting.collect(**options, progress=console.progress)
    console.show(found, _lines)


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
